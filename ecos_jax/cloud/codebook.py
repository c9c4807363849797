"""The codebook: R centroids that stand for the pool, and each sample's cluster.

k-means is fitted on a sample of the features or on all of them; one pass over
all rows then gives the assignment.
"""

from collections.abc import Iterator
import os
from pathlib import Path
from typing import NamedTuple
import zlib

import jax
import numpy as np
import tqdm

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import directions as directions_lib
from ecos_jax.clustering import assign
from ecos_jax.clustering import centring
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import mini_batch
from ecos_jax.clustering import start as start_lib
from ecos_jax.config import reading

_CENTROIDS = "centroids.npy"
_SIZES = "sizes.npy"
_ASSIGNMENT = "assignment.npy"
_AXES = "directions.npy"
_MEAN = "mean.npy"
# Rows of an assignment that are counted together.
_CHUNK_ROWS = 1 << 22


class Codebook(NamedTuple):
  """R centroids and the clusters they make of the pool.

  Attributes:
    centroids: float32 [R, d], rounded to the type of the features, unless
      these have a large common offset (`clustering.centring`).
    sizes: int64 [R], samples of the pool in each cluster.
    assignment: int32 [N], the cluster of each sample, -1 if it is in none.
    directions: Directions to vote on; None if the question is about clusters
      alone.
  """

  centroids: np.ndarray
  sizes: np.ndarray
  assignment: np.ndarray
  directions: directions_lib.Directions | None = None

  @property
  def digest(self) -> str:
    """The sha256 of the centroids, the assignment and the directions."""
    arrays = (self.centroids, self.assignment, *(self.directions or ()))
    return files.digest(*(array.data for array in arrays))


class Part(NamedTuple):
  """Some of the clusters of a codebook.

  Attributes:
    book: The codebook.
    covered: bool [R], which of its clusters.
  """

  book: Codebook
  covered: np.ndarray

  @property
  def size(self) -> int:
    """Number of samples in these clusters."""
    return int(self.book.sizes[self.covered].sum())

  def holds(self, start: int, rows: int) -> np.ndarray:
    """Returns which rows in start..start + rows are in them, bool [rows]."""
    return self.covered[self.book.assignment[start : start + rows]]

  def subsample(self, size: int, key: jax.Array) -> np.ndarray:
    """Returns `size` distinct rows that are in them, uniform, sorted."""
    ranks = start_lib.subsample(self.size, size, key)
    found, seen = [], 0
    for start in range(0, len(self.book.assignment), _CHUNK_ROWS):
      rows = np.flatnonzero(self.holds(start, _CHUNK_ROWS))
      first, last = np.searchsorted(ranks, (seen, seen + len(rows)))
      found.append(start + rows[ranks[first:last] - seen])
      seen += len(rows)
    return np.concatenate(found)


def fit(
  features: chunks.Features | jax.Array,
  size: int,
  key: jax.Array,
  *,
  sample_per_centroid: int = config_lib.Codebook.sample_per_centroid,
  iterations: int = config_lib.Codebook.iterations,
  tolerance: float = config_lib.Codebook.tolerance,
  directions: int = config_lib.Codebook.directions,
  mesh: jax.sharding.Mesh | None = None,
) -> Codebook:
  """Returns the codebook of features: k-means, and the cluster of every row.

  Deterministic given the key; device counts differ by rounding.

  Args:
    features: float16 or float32 [N, d], finite: a numpy or JAX array, one that
      is mapped from disk, or a feature bank.
    size: R, the number of centroids.
    key: Random key.
    sample_per_centroid: k-means is fitted on `size` times as many random rows;
      0: on all of them.
    iterations: As in `kmeans.fit`.
    tolerance: As in `kmeans.fit`.
    directions: p, the number of directions to vote on, at most d; 0: none.
    mesh: Devices to share the rows; None for one.

  Raises:
    EcosError: An argument is refused.
  """
  features = chunks.checked(features)
  options = reading.from_arguments(
    config_lib.Codebook,
    size=size,
    sample_per_centroid=sample_per_centroid,
    iterations=iterations,
    tolerance=tolerance,
    # The configuration has another way to ask for none.
    directions=directions if directions != 0 else 1,
  )
  key = start_lib.checked(key)
  mesh = mesh or chunks.single_device_mesh()
  centroids = _fit(features, features, options, key, mesh).centroids
  assignment = np.concatenate(list(_assigned(features, centroids, mesh)))
  # After the pass that names rows which are not finite.
  axes = None
  if directions != 0:
    axes = _axes(features, options.directions, key, mesh)
  sizes = counts(assignment, options.size)
  return Codebook(centroids, sizes, assignment, axes)


def _axes(
  features: chunks.Features, size: int, key: jax.Array, mesh: jax.sharding.Mesh
) -> directions_lib.Directions:
  """Returns `size` directions, but at most d."""
  key = jax.random.fold_in(key, zlib.crc32(b"directions"))
  size = min(size, features.shape[1])
  return directions_lib.fit(features, size, key, mesh=mesh)


def build(
  path: Path,
  bank: bank_lib.FeatureBank,
  config: config_lib.Codebook,
  key: jax.Array,
  mesh: jax.sharding.Mesh,
  within: Part | None = None,
  kept: Codebook | None = None,
) -> kmeans.KMeans | None:
  """Writes the codebook of a bank as .npy files.

  Memory does not grow with N. All processes must call this alike; the files are
  there when it returns.

  Args:
    path: An empty folder, the same for all processes.
    bank: The features, [N, d].
    config: R, and how to fit.
    key: Random key.
    mesh: The devices.
    within: The clusters whose rows are fitted and assigned; all other rows get
      the assignment -1. This needs `lloyd` and a sample. None for all rows.
    kept: A codebook whose centroids and directions are used; nothing is fitted.

  Returns:
    The clustering of the rows that k-means was fitted to; None if `kept` is
    given.

  Raises:
    EcosError: R does not lie in 1..N, or the features are not finite; or
      `kept` has other sizes.
  """
  fitted = None
  if kept is None:
    fitted = _fit_part(bank, config, key, mesh, within)
    centroids, axes = fitted.centroids, None
  else:
    _check_kept(kept, config, bank.shape[1])
    centroids, axes = kept.centroids, kept.directions
  sizes = np.zeros(config.size, np.int64)
  # All processes know all labels, and process 0 writes them: in order rather
  # than mapped, since a full disk would kill a mapping.
  writes = jax.process_index() == 0
  target = path / _ASSIGNMENT if writes else Path(os.devnull)
  with target.open("wb") as file:
    np.lib.format.write_array_header_1_0(
      file, {"descr": "<i4", "fortran_order": False, "shape": bank.shape[:1]}
    )
    start = 0
    for labels in _assigned(bank, centroids, mesh):
      if within is not None:
        labels = np.where(within.holds(start, len(labels)), labels, -1)
      file.write(labels.astype("<i4", copy=False).tobytes())
      sizes += counts(labels, config.size)
      start += len(labels)
  if fitted is not None and config.question is not config_lib.Question.COUNTS:
    axes = _axes(bank, config.directions, key, mesh)
  if writes:
    np.save(path / _CENTROIDS, centroids)
    np.save(path / _SIZES, sizes)
    if axes is not None:
      np.save(path / _AXES, axes.axes)
      np.save(path / _MEAN, axes.mean)
  distributed.barrier()
  return fitted


def _check_kept(
  kept: Codebook, config: config_lib.Codebook, dimension: int
) -> None:
  shape = config.size, dimension
  if kept.centroids.shape != shape:
    raise errors.EcosError(
      f"the codebook to keep has centroids {list(kept.centroids.shape)}, and "
      f"not {list(shape)}: leave `codebook.size` as it was"
    )
  asked = config.question is not config_lib.Question.COUNTS
  if asked != (kept.directions is not None):
    raise errors.EcosError(
      "the codebook to keep is of another `codebook.question`: leave it as it "
      "was"
    )


def _fit_part(
  bank: bank_lib.FeatureBank,
  config: config_lib.Codebook,
  key: jax.Array,
  mesh: jax.sharding.Mesh,
  within: Part | None,
) -> kmeans.KMeans:
  """Returns k-means on a bank, or on the rows of it that are `within`."""
  sample: chunks.Features = bank
  if within is not None:
    sample_key, key = jax.random.split(key)
    rows = min(config.sample_per_centroid * config.size, within.size)
    sample = bank.take(within.subsample(rows, sample_key))
  return _fit(sample, bank, config, key, mesh)


def _fit(
  sample: chunks.Features,
  features: chunks.Features,
  config: config_lib.Codebook,
  key: jax.Array,
  mesh: jax.sharding.Mesh,
) -> kmeans.KMeans:
  """Returns k-means on `sample`; centroids are rounded to `features`' type."""
  if not 1 <= config.size <= features.shape[0]:
    raise errors.EcosError(
      f"`size` must lie between 1 and the number of samples, "
      f"{features.shape[0]}, got {config.size}"
    )
  if config.algorithm is config_lib.Algorithm.MINI_BATCH:
    fitted = mini_batch.fit(sample, config.size, key, mesh=mesh)
  else:
    fitted = kmeans.fit(
      sample,
      config.size,
      key,
      iterations=config.iterations,
      tolerance=config.tolerance,
      sample=config.sample_per_centroid * config.size or None,
      mesh=mesh,
    )
  if centring.offset(fitted.centroids).any():
    # Float16 would round away what tells them apart.
    return fitted
  # Then a query needs as many bytes a number as the features.
  narrow = fitted.centroids.astype(features.dtype)
  return fitted._replace(centroids=narrow.astype(np.float32))


def _assigned(
  features: chunks.Features, centroids: np.ndarray, mesh: jax.sharding.Mesh
) -> Iterator[np.ndarray]:
  """Yields the clusters of successive rows, int32."""
  progress = tqdm.tqdm(
    total=features.shape[0], desc="assignment", unit=" rows", disable=None
  )
  with progress:
    for start, part in assign.stream(features, centroids, mesh=mesh):
      bad = np.flatnonzero(~np.isfinite(part.distances))[:5]
      if len(bad):
        raise errors.EcosError(
          f"`features`: rows {', '.join(map(str, start + bad))} hold NaN, "
          "infinite or too large numbers"
        )
      yield np.asarray(part.labels)
      progress.update(len(part.labels))


def read(path: Path, digest: str | None = None) -> Codebook:
  """Returns the codebook that `build` wrote to `path`.

  Args:
    path: The folder.
    digest: What its digest must be; None: it is not checked.

  Raises:
    WorkdirError: A file is damaged.
  """
  axes = None
  if (path / _AXES).exists():
    axes = directions_lib.Directions(
      workdir.load_array(path / _AXES), workdir.load_array(path / _MEAN)
    )
  book = Codebook(
    workdir.load_array(path / _CENTROIDS),
    workdir.load_array(path / _SIZES),
    workdir.load_array(path / _ASSIGNMENT, mmap_mode="r"),
    axes,
  )
  if digest is not None:
    if book.digest != digest:
      raise workdir.damaged(path / _CENTROIDS, f"or {_ASSIGNMENT} beside it")
    sizes = counts(book.assignment, len(book.centroids))
    if not np.array_equal(sizes, book.sizes):
      raise workdir.damaged(path / _SIZES)
  return book


def counts(labels: np.ndarray, size: int) -> np.ndarray:
  """Returns how often each of 0..size - 1 is in labels, where -1 is none."""
  result = np.zeros(size, np.int64)
  # Their copy, and numpy's as int64, do not grow with the pool.
  for start in range(0, len(labels), _CHUNK_ROWS):
    some = labels[start : start + _CHUNK_ROWS] + 1
    result += np.bincount(some, minlength=size + 1)[1:]
  return result

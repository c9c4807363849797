"""The codebook: a bank compressed to R centroids, and where each row belongs.

k-means is fitted on a sample of the bank or on all of it; one pass over all
rows then gives the assignment, which is written as it comes, so that memory
does not grow with the pool.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.clustering import assign
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import mini_batch
from ecos_jax.clustering import start as start_lib

_CENTROIDS = "centroids.npy"
_SIZES = "sizes.npy"
_ASSIGNMENT = "assignment.npy"
# Rows of an assignment that are counted together.
_CHUNK_ROWS = 1 << 22


class Codebook(NamedTuple):
  """R centroids and the clusters they make of the pool.

  Attributes:
    centroids: float32 [R, d], of numbers that the bank's type can hold: so a
      query takes no more bytes than that.
    sizes: int64 [R], samples of the pool in each cluster.
    assignment: int32 [N], the cluster of each sample, mapped from disk; -1 for
      one that is in none.
  """

  centroids: np.ndarray
  sizes: np.ndarray
  assignment: np.ndarray

  @property
  def digest(self) -> str:
    """The sha256 of the centroids and the assignment."""
    return files.digest(self.centroids.data, self.assignment.data)


class Part(NamedTuple):
  """Some clusters of a codebook.

  Attributes:
    book: The codebook.
    covered: bool [R], which clusters.
  """

  book: Codebook
  covered: np.ndarray

  @property
  def size(self) -> int:
    """How many samples of the pool they hold."""
    return int(self.book.sizes[self.covered].sum())

  def holds(self, start: int, rows: int) -> np.ndarray:
    """Returns which of `rows` rows from `start` on are in them, [rows] bool."""
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


def build(
  path: Path,
  bank: bank_lib.FeatureBank,
  config: config_lib.Codebook,
  key: jax.Array,
  mesh: jax.sharding.Mesh,
  within: Part | None = None,
) -> kmeans.KMeans:
  """Fits k-means, assigns every row, writes three .npy files.

  All processes must call this alike; the files are there when it returns.

  Args:
    path: An empty folder, the same for all processes.
    bank: The features, [N, d].
    config: R, and how to fit.
    key: Random key.
    mesh: The devices.
    within: Rows that it is about; others get the assignment -1. The fit then
      needs `lloyd`, and a sample. None for all rows.

  Returns:
    What k-means says of the rows that it was fitted on.

  Raises:
    EcosError: R does not lie in 1..N, or the features are not finite.
  """
  options: dict[str, Any] = {
    "iterations": config.iterations,
    "tolerance": config.tolerance,
    "sample": config.sample_per_centroid * config.size or None,
    "mesh": mesh,
  }
  fitted_on: bank_lib.FeatureBank | np.ndarray = bank
  if within is not None:
    sample = min(options.pop("sample"), within.size)
    sample_key, key = jax.random.split(key)
    fitted_on = bank.take(within.subsample(sample, sample_key))
  if config.algorithm is config_lib.Algorithm.MINI_BATCH:
    fitted = mini_batch.fit(bank, config.size, key, mesh=mesh)
  else:
    fitted = kmeans.fit(fitted_on, config.size, key, **options)
  # As the bank's type holds them: so a query takes no more bytes than that.
  centroids = fitted.centroids.astype(bank.dtype).astype(np.float32)
  parts = assign.stream(bank, centroids, mesh=mesh)
  rows = bank.shape[0]
  sizes = np.zeros(config.size, np.int64)
  progress = tqdm.tqdm(
    total=rows, desc="assignment", unit=" rows", disable=None
  )
  # All processes know all labels, and process 0 writes them: in order rather
  # than mapped, since a full disk would kill a mapping.
  writes = jax.process_index() == 0
  target = path / _ASSIGNMENT if writes else Path(os.devnull)
  with target.open("wb") as file, progress:
    np.lib.format.write_array_header_1_0(
      file, {"descr": "<i4", "fortran_order": False, "shape": (rows,)}
    )
    for start, part in parts:
      labels = np.asarray(part.labels, "<i4")
      if within is not None:
        labels = np.where(within.holds(start, len(labels)), labels, -1)
      file.write(labels.tobytes())
      sizes += counts(labels, config.size)
      progress.update(len(labels))
  if writes:
    np.save(path / _CENTROIDS, centroids)
    np.save(path / _SIZES, sizes)
  distributed.barrier()
  return fitted


def read(path: Path, digest: str | None = None) -> Codebook:
  """Returns the codebook that `build` wrote to `path`.

  Args:
    path: The folder.
    digest: What its digest must be; None: it is not checked.

  Raises:
    WorkdirError: A file is damaged.
  """
  book = Codebook(
    workdir.load_array(path / _CENTROIDS),
    workdir.load_array(path / _SIZES),
    workdir.load_array(path / _ASSIGNMENT, mmap_mode="r"),
  )
  if digest is not None:
    if book.digest != digest:
      raise workdir.damaged(path / _CENTROIDS, f"or {_ASSIGNMENT} beside it")
    if not np.array_equal(_count(book), book.sizes):
      raise workdir.damaged(path / _SIZES)
  return book


def counts(labels: np.ndarray, size: int) -> np.ndarray:
  """Returns how often each of 0..size - 1 is in labels, where -1 is none."""
  return np.bincount(labels + 1, minlength=size + 1)[1:]


def _count(book: Codebook) -> np.ndarray:
  """Returns the sizes of the clusters of an assignment."""
  sizes = np.zeros(len(book.centroids), np.int64)
  for start in range(0, len(book.assignment), _CHUNK_ROWS):
    sizes += counts(book.assignment[start : start + _CHUNK_ROWS], len(sizes))
  return sizes

"""Pools and private data sets: images by index, wherever they are stored.

A source is a named collection: arrays, a folder of files, a split of a TFDS
dataset. It returns images in RGB, cut to a square, at the size that the encoder
needs. It also returns the file of a sample, so that a proxy dataset holds the
bytes of the pool unchanged. A source may instead hold features, which were made
from images elsewhere.

A pool is a sequence of sources. The global index of a sample is its index in
its source plus the number of samples in the sources before.

Clients read their private images with this module too, so it needs only numpy
and Pillow; TFDS is imported when a source needs it.
"""

from collections.abc import Iterator, Sequence
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ecos_jax import errors
from ecos_jax import files
from ecos_jax.config import classes as classes_lib
from ecos_jax.config import spec as spec_lib
from ecos_jax.data import arrays
from ecos_jax.data import bucket
from ecos_jax.data import features
from ecos_jax.data import folder
from ecos_jax.data import images as image_files
from ecos_jax.data import table_images
from ecos_jax.data import tar_shards
from ecos_jax.data import tfds_split
from ecos_jax.data.arrays import ArraySource as ArraySource


class Source(Protocol):
  """A named collection of images, read by index."""

  @property
  def name(self) -> str:
    """Returns the name, which a proxy stores with every sample."""

  @property
  def digest(self) -> str:
    """Returns a text that identifies the content without reading all of it."""

  @property
  def classes(self) -> int:
    """Returns the number of classes; 0 without labels."""

  def __len__(self) -> int:
    """Returns the number of samples."""

  def images(self, indices: np.ndarray, size: int) -> np.ndarray:
    """Returns the images [n, size, size, 3] uint8 at `indices` [n].

    Raises:
      EcosError: An image cannot be decoded; the message names it.
    """

  def labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns the classes [n] int64 at `indices` [n], -1 where unknown."""

  def encoded(self, index: int) -> bytes:
    """Returns the sample's own file if PNG, JPEG or WebP, else a PNG file."""


class Part:
  """Some samples of a source."""

  def __init__(self, source: Source, indices: np.ndarray, what: str):
    """Reads nothing.

    Args:
      source: The source.
      indices: int64 [n], the samples of this part.
      what: How they were chosen; part of the digest.
    """
    self._source, self._indices, self._what = source, indices, what
    self.name, self.classes = source.name, source.classes
    persons = getattr(source, "persons", None)
    self.persons = None if persons is None else persons[indices]

  @property
  def digest(self) -> str:
    """Returns what identifies the content."""
    return f"{self._what}:{self._source.digest}"

  def __len__(self) -> int:
    """Returns the number of samples."""
    return len(self._indices)

  def images(self, indices: np.ndarray, size: int) -> np.ndarray:
    """Returns the images [n, size, size, 3] uint8 at `indices` [n]."""
    return self._source.images(self._indices[indices], size)

  def labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns the classes [n] int64 at `indices` [n]."""
    return self._source.labels(self._indices[indices])

  def encoded(self, index: int) -> bytes:
    """Returns the sample as a file."""
    return self._source.encoded(int(self._indices[index]))


def labelled(source: Source) -> Part:
  """Returns the samples whose label is known; reads all labels."""
  labels = source.labels(np.arange(len(source)))
  return Part(source, np.flatnonzero(labels >= 0), "labelled")


def open_source(
  text: str,
  data_dir: str | None = None,
  classes: Sequence[str] | None = None,
  listing: Path | None = None,
  *,
  may_be_empty: bool = False,
  ground: str = image_files.WHITE,
) -> Source:
  """Returns the source that a source string names; see `config.spec`.

  Args:
    text: The source string.
    data_dir: Where TFDS keeps its data.
    classes: Names of the classes, in the order of their labels: see
      `RecordSource` and `TfdsSource`. Or `classes.NUMBERS`:
      labels are the numbers that a source has, which arrays have in any case.
    listing: File that keeps what is found, so that the next run reads only what
      changed; None: nothing is kept.
    may_be_empty: Whether a folder, bucket or table may have no image.
    ground: As in `images.rgb`.

  Raises:
    EcosError: The string names nothing, what it names cannot be read, or it is
      an array file and `classes` names classes.
  """
  options: dict[str, Any] = {
    "classes": classes,
    "listing": listing,
    "may_be_empty": may_be_empty,
    "ground": ground,
  }
  match spec_lib.parse(text):
    case spec_lib.Folder(path, part):
      return folder.FolderSource(path, part=part, **options)
    case spec_lib.Bucket(url):
      return bucket.open_folder(url, **options)
    case spec_lib.Webdataset(pattern):
      return tar_shards.open_shards(pattern, **options)
    case spec_lib.Tables(pattern, column):
      return table_images.open_images(pattern, column, **options)
    case spec_lib.Hub(name, configuration, split):
      found = table_images.download(name, configuration, split)
      return table_images.open_images(found, None, **options)
    case spec_lib.Tfds(name, split):
      names = None if classes == classes_lib.NUMBERS else classes
      return tfds_split.TfdsSource(name, split, data_dir, names, ground)
    case spec_lib.Features(pattern, column):
      return features.FeatureSource(pattern, column)
    case spec_lib.Images(path):
      if classes not in (None, classes_lib.NUMBERS):
        raise errors.EcosError(
          "`classes` names folders, but this is an array file: its labels are "
          "numbers already"
        )
      return arrays.open_arrays(path, listing)


def _distinct(sources: Sequence[Source]) -> tuple[str, ...]:
  """Returns a name for each source, its own or with a number behind it.

  Raises:
    EcosError: A source is there twice.
  """
  names: list[str] = []
  for i, source in enumerate(sources):
    same = [other for other in sources[:i] if other.name == source.name]
    if any(other.digest == source.digest for other in same):
      raise errors.EcosError(
        f"the source {source.name} is twice in the pool, with the same "
        "content: name it once"
      )
    names.append(f"{source.name}:{len(same) + 1}" if same else source.name)
  return tuple(names)


class Pool:
  """A sequence of sources, read by global index.

  Attributes:
    source_names: Names of the sources, in order: `train`, `train:2`, if two
      have the same.
    feature_sources: All sources if the pool is of features; empty otherwise.
  """

  def __init__(self, sources: Sequence[Source]):
    """Joins the sources.

    Args:
      sources: In the order of the global index.

    Raises:
      EcosError: There are no samples; a source is there twice; or some are of
        features and others are not, or of another dimension.
    """
    self._sources = tuple(sources)
    self.source_names = _distinct(sources)
    # offsets[i] is the global index of the first sample of source i.
    self._offsets = np.cumsum([0, *map(len, sources)], dtype=np.int64)
    if not len(self):
      raise errors.EcosError("the pool is empty: give it sources with images")
    self.feature_sources = tuple(
      source for source in sources if isinstance(source, features.FeatureSource)
    )
    if 0 < len(self.feature_sources) < len(sources):
      raise errors.EcosError("a pool is of images or of features, not of both")
    dimensions = {source.dimension for source in self.feature_sources}
    if len(dimensions) > 1:
      raise errors.EcosError(
        f"the sources of the pool have d = {sorted(dimensions)}: give sources "
        "of one d"
      )

  @functools.cached_property
  def digest(self) -> str:
    """Returns a sha256 over the sources' lengths and digests."""
    identity = [[len(s), s.digest] for s in self._sources]
    return files.digest(json.dumps(identity).encode())

  def __len__(self) -> int:
    """Returns the number of samples, N."""
    return int(self._offsets[-1])

  @property
  def sources(self) -> tuple[Source, ...]:
    """Returns the sources in order."""
    return self._sources

  @property
  def classes(self) -> int:
    """Returns the number of classes; 0 without labels."""
    return max(source.classes for source in self._sources)

  def class_sizes(self, classes: int) -> list[int]:
    """Returns the number of samples of each class.

    Splits of TFDS are not counted: all of their files would be read for it.

    Args:
      classes: Number of classes.

    Raises:
      EcosError: A label is no class.
    """
    sizes = np.zeros(classes, np.int64)
    for source in self._sources:
      if isinstance(source, tfds_split.TfdsSource):
        continue
      labels = source.labels(np.arange(len(source)))
      if labels.max(initial=-1) >= classes:
        raise errors.EcosError(
          f"a label in {source.name} is {labels.max()}, but `data.classes` "
          f"names {classes} classes, which are 0 to {classes - 1}"
        )
      sizes += np.bincount(labels[labels >= 0], minlength=classes)
    return sizes.tolist()

  @property
  def sizes(self) -> tuple[int, ...]:
    """Returns the number of samples of each source."""
    return tuple(len(source) for source in self._sources)

  def source_of(self, indices: np.ndarray) -> np.ndarray:
    """Returns the position of the source of each sample, [n] int32.

    Args:
      indices: Global indices [n].

    Raises:
      IndexError: An index is outside [0, N).
    """
    if len(indices) and not 0 <= np.min(indices) <= np.max(indices) < len(self):
      raise IndexError(f"indices must lie in [0, {len(self)})")
    return np.searchsorted(self._offsets, indices, "right").astype(np.int32) - 1

  def images(self, indices: np.ndarray, size: int) -> np.ndarray:
    """Returns the images [n, size, size, 3] uint8 at `indices` [n]."""
    images = np.empty((len(indices), size, size, 3), np.uint8)
    for source, rows, local in self.by_source(indices):
      images[rows] = source.images(local, size)
    return images

  def labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns the classes [n] int64 at `indices` [n], -1 where unknown."""
    labels = np.empty(len(indices), np.int64)
    for source, rows, local in self.by_source(indices):
      labels[rows] = source.labels(local)
    return labels

  def encoded(self, index: int) -> bytes:
    """Returns the sample as a file: PNG, JPEG or WebP."""
    [(source, _, local)] = self.by_source(np.array([index]))
    return source.encoded(int(local[0]))

  def features(self, indices: np.ndarray) -> np.ndarray:
    """Returns the features [n, d] float32 at `indices` [n].

    Args:
      indices: int64 [n]; the pool must be of features.
    """
    found = np.empty((len(indices), self.feature_sources[0].dimension), "f4")
    for source, rows, local in self.by_source(indices):
      assert isinstance(source, features.FeatureSource)
      found[rows] = source.features(local)
    return found

  def keys(self, indices: np.ndarray) -> list[str]:
    """Returns the names of samples in their sources: paths, or row numbers."""
    keys = [""] * len(indices)
    for source, rows, local in self.by_source(indices):
      own = getattr(source, "keys", lambda rows: list(map(str, rows.tolist())))
      for row, key in zip(rows, own(local), strict=True):
        keys[row] = files.printable(key)
    return keys

  def fingerprints(self) -> np.ndarray:
    """Returns 16 bytes for each sample, [N] V16; equal bytes: equal content.

    A source that does not read the content of its samples gives all of them new
    bytes whenever it changes.
    """
    parts = []
    for source in self._sources:
      if hasattr(source, "fingerprints"):
        parts.append(source.fingerprints())
        continue
      rows = (f"{source.digest}:{row}".encode() for row in range(len(source)))
      parts.append(image_files.fingerprints(map(image_files.digest, rows)))
    return np.concatenate(parts)

  def by_source(
    self, indices: np.ndarray
  ) -> Iterator[tuple[Source, np.ndarray, np.ndarray]]:
    """Yields each source, the rows of `indices` in it, and its own indices."""
    positions = self.source_of(indices)
    for position in np.unique(positions):
      rows = np.flatnonzero(positions == position)
      local = np.asarray(indices)[rows] - self._offsets[position]
      yield self._sources[position], rows, local


class Problem(NamedTuple):
  """The data of the cloud, of the simulated client, and of the test.

  Attributes:
    pool: The public samples.
    client: The simulated client's samples, which are private; None if the
      client is remote. Those of several clients, one after the other.
    test: Held-out samples of the client's domain; None if there are none.
    client_source: Position of the pool's source of the client's domain; None if
      there is none, or it is unknown.
    classes: Number of classes; 0 if unknown.
    class_names: Their names, in the order of the labels; () if they have none.
    domains: int64 [n] and [m], the domain of each sample of the client and of
      the test; None if each has one.
    owners: int64 [n], which client has each sample; None: there is one.
  """

  pool: Pool
  client: Source | None
  test: Source | None
  client_source: int | None
  classes: int
  class_names: tuple[str, ...] = ()
  domains: tuple[np.ndarray, np.ndarray] | None = None
  owners: np.ndarray | None = None

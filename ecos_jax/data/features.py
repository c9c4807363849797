"""Features that were made elsewhere, instead of images.

They are rows of arrays in `.npy` and `.npz` files, or of a column of lists in
parquet and Arrow tables, on a disk or in a bucket.
"""

from collections.abc import Iterator
import functools
import hashlib
import json
from pathlib import Path
from typing import NoReturn

import numpy as np

from ecos_jax import errors
from ecos_jax.data import locations
from ecos_jax.data import rows as rows_lib
from ecos_jax.data import tables

# The sum of 8192 such squares is finite in float32.
_HUGE = 2.0**57
_ROWS = 2**14  # to read at once
_ROW_FILES = (".jsonl", ".parquet")
_METADATA = "metadata"
# What is read of a file to know it again: pieces, this many bytes each.
_PIECES, _PIECE_BYTES = 64, 2**14


def unusable(features: np.ndarray) -> np.ndarray:
  """Returns which rows hold NaN, infinite or huge values, [n] bool.

  The largest number that float32 has often marks a missing value; the square of
  a huge one is infinite.

  Args:
    features: [n, d] of any float type.
  """
  bad: np.ndarray = ~np.isfinite(features)
  if features.dtype.itemsize > 2:
    bad |= np.abs(features) > _HUGE
  return np.asarray(bad.any(axis=1))


class FeatureSource:
  """Features in files, in the natural order of their names.

  Metadata of .npy and .npz files are optional: one row for each feature, in
  FILE.jsonl or FILE.parquet beside FILE.npy, or in metadata.jsonl or
  metadata.parquet in the folder.

  Attributes:
    name: The name of the file without its suffix, or of the folder.
    files: The files, in the order of their rows.
    dimension: d, the length of a feature.
    dtype: The type of the features: what numpy promotes those of all files to.
    classes: 0: there are no labels.
  """

  classes = 0

  def __init__(self, path: Path | str, column: str | None = None):
    """Opens the files without reading them; only .npz files are read.

    Args:
      path: Files of floating-point [rows, d], as in `locations.find`. Of a
        folder the .npy files are taken, or else .npz, or else tables.
      column: A table's column; None: the only one with lists of numbers.

    Raises:
      EcosError: There is no such file, or the files differ in d.
    """
    found = _find(str(path))
    self.name, self.files = found
    reader = tables.Reader()
    self._parts = [
      rows_lib.open_rows(file, column, reader) for file in self.files
    ]
    self.dimension = self._parts[0].shape[1]
    self.dtype = np.result_type(*(part.dtype for part in self._parts))
    for file, part in zip(self.files, self._parts, strict=True):
      if part.shape[1] != self.dimension:
        raise errors.EcosError(
          f"{file.path} has d = {part.shape[1]}, {self.files[0].path} has d = "
          f"{self.dimension}"
        )
    self._offsets = np.cumsum(
      [0, *(part.shape[0] for part in self._parts)], dtype=np.int64
    )
    self._rows = _metadata_of(Path(path))

  @functools.cached_property
  def digest(self) -> str:
    """Returns a sha256 over the files' names, sizes and pieces of their bytes.

    Neither path nor times matter. The bank compares checksums of all bytes.
    """
    sha = hashlib.sha256()
    for file in self.files:
      sha.update(json.dumps([file.name, file.size]).encode())
      if file.is_local:
        last = max(file.size - _PIECE_BYTES, 0)
        starts = np.unique(np.linspace(0, last, _PIECES).astype(int)).tolist()
        with Path(file.path).open("rb") as stream:
          for start in starts:
            stream.seek(start)
            sha.update(stream.read(_PIECE_BYTES))
      else:
        sha.update(file.version.encode())
    return sha.hexdigest()

  def __len__(self) -> int:
    """Returns the number of rows."""
    return int(self._offsets[-1])

  def keys(self, indices: np.ndarray) -> list[str]:
    """Returns FILE/ROW for each of `indices` [n]."""
    parts = np.searchsorted(self._offsets, indices, "right") - 1
    return [
      f"{self.files[part].name}/{index - self._offsets[part]}"
      for part, index in zip(parts, indices, strict=True)
    ]

  def features(self, indices: np.ndarray) -> np.ndarray:
    """Returns the features [n, d] at `indices` [n].

    Raises:
      EcosError: A file is damaged.
    """
    features = np.empty((len(indices), self.dimension), self.dtype)
    parts = np.searchsorted(self._offsets, indices, "right") - 1
    for part in np.unique(parts):
      own = parts == part
      try:
        features[own] = self._parts[part].take(
          indices[own] - self._offsets[part]
        )
      except (OSError, ValueError) as error:
        raise errors.EcosError(
          f"cannot read {self.files[part].path}: {error}"
        ) from error
    return features

  def unusable(self) -> int:
    """Returns the number of features that are `unusable`."""
    starts = range(0, len(self), _ROWS)
    blocks = (range(s, min(s + _ROWS, len(self))) for s in starts)
    return sum(
      int(unusable(self.features(np.array(rows))).sum()) for rows in blocks
    )

  def labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns -1 for each index, [n] int64: there are no labels."""
    return np.full(len(indices), -1, np.int64)

  def images(self, indices: np.ndarray, size: int) -> NoReturn:
    """Raises EcosError: there are no images."""
    del indices, size
    raise errors.EcosError(
      f"{self.name} holds features: give a source of images here"
    )

  def encoded(self, index: int) -> NoReturn:
    """Raises EcosError: there are no images."""
    self.images(np.array([index]), 0)

  def metadata(self, indices: np.ndarray) -> list[dict] | None:
    """Returns the metadata at `indices` [n]; None if there is no such file.

    Raises:
      EcosError: The numbers of rows and of features differ, or a row is
        damaged.
    """
    if self._rows is None:
      return None
    wanted = set(indices.tolist())
    found = {}
    count = 0
    try:
      for count, row in enumerate(_rows(self._rows), 1):
        if count - 1 in wanted:
          found[count - 1] = json.loads(row) if isinstance(row, str) else row
    except (ValueError, OSError, RecursionError) as error:
      raise errors.EcosError(f"{self._rows} is damaged: {error}") from error
    # Errors contain no count: a client's number of samples is private.
    if count != len(self) or not all(
      isinstance(row, dict) for row in found.values()
    ):
      raise errors.EcosError(
        f"{self._rows} must have one row of named values for each feature"
      )
    return [found[index] for index in indices.tolist()]


def _find(pattern: str) -> locations.Found:
  """Returns the files of features that a pattern names.

  Raises:
    EcosError: There is none.
  """
  found = tables.find(pattern, rows_lib.SUFFIXES, depth=1)
  for suffixes in ((".npy",), (".npz",), tables.SUFFIXES):
    files = [
      file
      for file in found.files
      if file.path.lower().endswith(suffixes)
      and Path(file.name).stem != _METADATA
    ]
    if files:
      return found._replace(files=files)
  raise errors.EcosError(
    f"{pattern} names no file of features ({', '.join(rows_lib.SUFFIXES)})"
  )


def _metadata_of(path: Path) -> Path | None:
  """Returns the file of metadata beside features on a disk, if there is one."""
  stem = path / _METADATA if path.is_dir() else path
  beside = (stem.with_suffix(suffix) for suffix in _ROW_FILES)
  return next((f for f in beside if f != path and f.is_file()), None)


def _rows(path: Path) -> Iterator[str | dict]:
  if path.suffix == ".jsonl":
    with path.open(encoding="utf-8") as lines:
      yield from (line for line in lines if line.strip())
    return
  with tables.arrow(str(path)).parquet.ParquetFile(path) as file:
    for batch in file.iter_batches():
      yield from batch.to_pylist()

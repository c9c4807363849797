"""Features that were made elsewhere: .npy files instead of images."""

from collections.abc import Iterator
import functools
import hashlib
import json
from pathlib import Path
from typing import NoReturn

import numpy as np

from ecos_jax import errors
from ecos_jax import files
from ecos_jax.data import images as image_files

_ROWS = 2**14  # to read at once
_ROW_FILES = (".jsonl", ".parquet")


class FeatureSource:
  """Features in a .npy file, or in all .npy files of a folder by name.

  Metadata are optional: one row for each feature, in FILE.jsonl or FILE.parquet
  beside FILE.npy, or in metadata.jsonl or metadata.parquet in the folder.

  Attributes:
    name: The name of the file without its suffix, or of the folder.
    files: The .npy files, in the order of their rows.
    dimension: d, the length of a feature.
    classes: 0: there are no labels.
  """

  classes = 0

  def __init__(self, path: Path):
    """Opens the files without reading them.

    Args:
      path: A .npy file of floating-point [rows, d], or a folder of such files.

    Raises:
      EcosError: There is no such file, or the files differ in d.
    """
    folder = path.is_dir()
    self.files = sorted(path.glob("*.npy")) if folder else [path]
    if not self.files:
      raise errors.EcosError(f"{path} holds no .npy file")
    self._arrays = [_open(file) for file in self.files]
    self.name = files.printable(path.resolve().name if folder else path.stem)
    self.dimension = self._arrays[0].shape[1]
    for file, array in zip(self.files, self._arrays, strict=True):
      if array.shape[1] != self.dimension:
        raise errors.EcosError(
          f"{file} has d = {array.shape[1]}, {self.files[0]} has d = "
          f"{self.dimension}"
        )
    self._offsets = np.cumsum([0, *map(len, self._arrays)], dtype=np.int64)
    stem = path / "metadata" if folder else path
    self._rows = next(
      (f for s in _ROW_FILES if (f := stem.with_suffix(s)).is_file()), None
    )

  @functools.cached_property
  def digest(self) -> str:
    """Returns a sha256 over the files' names, sizes and times of change."""
    stats = [(file.name, file.stat()) for file in self.files]
    text = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()

  def __len__(self) -> int:
    """Returns the number of rows."""
    return int(self._offsets[-1])

  def features(self, indices: np.ndarray) -> np.ndarray:
    """Returns the features [n, d] at `indices` [n]."""
    dtype = np.result_type(*self._arrays)
    features = np.empty((len(indices), self.dimension), dtype)
    files = np.searchsorted(self._offsets, indices, "right") - 1
    for file in np.unique(files):
      own = files == file
      features[own] = self._arrays[file][indices[own] - self._offsets[file]]
    return features

  def rows_of_nan(self) -> int:
    """Returns the number of features that are NaN throughout."""
    starts = range(0, len(self), _ROWS)
    blocks = (range(s, min(s + _ROWS, len(self))) for s in starts)
    return sum(
      int(np.isnan(self.features(np.array(rows))).all(1).sum())
      for rows in blocks
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
      EcosError: The rows of metadata are not as many as the features, or one is
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
    except (ValueError, OSError) as error:
      raise errors.EcosError(f"{self._rows} is damaged: {error}") from error
    if count != len(self):
      raise errors.EcosError(
        f"{self._rows} has {count} rows for {len(self)} features"
      )
    return [found[index] for index in indices.tolist()]


def _open(file: Path) -> np.ndarray:
  try:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise errors.EcosError(
      f"{file} cannot be read as a .npy file: "
      f"{image_files.why_no_arrays(error, file)}"
    ) from error
  shape = getattr(array, "shape", ())
  if len(shape) != 2 or array.dtype.kind != "f":
    # Errors contain no count: a client's number of samples is private.
    raise errors.EcosError(f"{file} must hold floating-point features [n, d]")
  return array


def _rows(path: Path) -> Iterator[str | dict]:
  if path.suffix == ".jsonl":
    with path.open(encoding="utf-8") as lines:
      yield from (line for line in lines if line.strip())
    return
  try:
    from pyarrow import parquet
  except ImportError:
    raise errors.EcosError(
      f"to read {path}: pip install pyarrow, or write it as .jsonl"
    ) from None
  with parquet.ParquetFile(path) as file:
    for batch in file.iter_batches():
      yield from batch.to_pylist()

"""The rows of one file of features: .npy, .npz, or a column of a table."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ecos_jax import errors
from ecos_jax.data import array_files
from ecos_jax.data import locations
from ecos_jax.data import tables

SUFFIXES = (".npy", ".npz", ".parquet", ".arrow")
_ARRAY = "features"
# Types of Arrow as types of numpy.
_FLOATS = {"halffloat": "f2", "float": "f4", "double": "f8"}


class Rows(Protocol):
  """The features of a file, which is open only while it is read.

  Attributes:
    shape: (n, d).
    dtype: A floating-point type.
  """

  shape: tuple[int, int]
  dtype: np.dtype

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Returns the features [m, d] at `rows` int64 [m].

    Raises:
      OSError, ValueError: The file is damaged.
    """


def open_rows(
  file: locations.File, column: str | None, reader: tables.Reader
) -> Rows:
  """Returns the rows of a file.

  Args:
    file: The file.
    column: A table's column; None: the only one with lists of numbers.
    reader: Reads tables; all those of a source share it.

  Raises:
    EcosError: It does not hold floating-point [n, d].
  """
  try:
    match Path(file.path).suffix.lower():
      case ".npy":
        rows = Mapped(file) if file.is_local else Ranges(file)
      case ".npz":
        rows = _of_npz(file)
      case _:
        rows = Lists(file, column, reader)
  except array_files.ERRORS as error:
    is_table = file.path.lower().endswith(tables.SUFFIXES)
    why = str(error) if is_table else array_files.why(error, Path(file.path))
    raise errors.EcosError(
      f"{file.path} cannot be read as features: {why}"
    ) from error
  if len(rows.shape) != 2 or rows.dtype.kind != "f":
    # Errors contain no count: a client's number of samples is private.
    raise errors.EcosError(
      f"{file.path} must hold floating-point features [n, d]"
    )
  return rows


class Mapped:
  """An .npy file on a disk, which is mapped."""

  def __init__(self, file: locations.File):
    """Opens the file and closes it again: a source may have many."""
    self._path = file.path
    array = self._array()
    self.shape, self.dtype = array.shape, array.dtype

  def _array(self) -> np.ndarray:
    return np.lib.format.open_memmap(self._path, mode="r")

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Returns the features at `rows`."""
    return self._array()[rows]


class Ranges:
  """An .npy file in a bucket; ranges of its bytes are read."""

  def __init__(self, file: locations.File):
    """Reads the header."""
    self._file = file
    with file.fs.open(file.path, "rb") as stream:
      self.shape, fortran, self.dtype = array_files.header(stream)
      self._start = stream.tell()
    size = self._start + int(np.prod(self.shape)) * self.dtype.itemsize
    if fortran or self.dtype.hasobject or size != file.size:
      raise ValueError("not C-ordered, or truncated")

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Returns the features at `rows`: one range for rows in succession."""
    width = self.shape[1] * self.dtype.itemsize
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    starts = [self._start + int(run[0]) * width for run in runs if len(run)]
    ends = [
      self._start + (int(run[-1]) + 1) * width for run in runs if len(run)
    ]
    data = b"".join(self._file.read(starts, ends))
    return np.frombuffer(data, self.dtype).reshape(len(rows), self.shape[1])


class InMemory:
  """An array that was read whole."""

  def __init__(self, array: np.ndarray):
    """Keeps the array."""
    self._array = array
    self.shape, self.dtype = array.shape, array.dtype

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Returns the features at `rows`."""
    return self._array[rows]


def _of_npz(file: locations.File) -> InMemory:
  if not file.is_local:
    raise errors.EcosError(
      f"{file.path}: an .npz file in a bucket would be read whole: store .npy"
    )
  arrays = array_files.read(Path(file.path))
  if len(arrays) > 1 and _ARRAY not in arrays:
    raise errors.EcosError(
      f"{file.path} has the arrays {', '.join(arrays)}: call one {_ARRAY!r}"
    )
  if not arrays:
    raise errors.EcosError(f"{file.path} has no array")
  return InMemory(arrays.get(_ARRAY, next(iter(arrays.values()))))


class Lists:
  """A column of a table, of lists of d numbers."""

  def __init__(
    self, file: locations.File, column: str | None, reader: tables.Reader
  ):
    """Reads the metadata of the table, and its first row."""
    self._table = tables.Table(file)
    self._reader = reader
    self._column = _list_column(self._table.schema, column)
    kind = self._table.schema.field(self._column).type
    self.dtype = np.dtype(_FLOATS[str(kind.value_type)])
    self.shape = (int(self._table.starts[-1]), 0)
    if self.shape[0]:
      [first] = self._reader.read(self._table, self._column, np.zeros(1, int))
      self.shape = (self.shape[0], len(first[0]))

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Returns the features at `rows`."""
    pa, d = tables.arrow(self._table.file.path), self.shape[1]
    order = np.argsort(rows, kind="stable")
    found = np.empty((len(rows), d), self.dtype)
    start = 0
    for part in self._reader.read(self._table, self._column, rows[order]):
      numbers = part.flatten()
      lengths = pa.compute.list_value_length(part).fill_null(-1).to_numpy()
      if numbers.null_count or np.any(lengths != d):
        raise ValueError(f"a row of {self._column} is no list of {d} numbers")
      values = numbers.to_numpy(zero_copy_only=False).reshape(-1, d)
      found[order[start : start + len(part)]] = values
      start += len(part)
    return found


def _list_column(schema: Any, wanted: str | None) -> str:
  """Returns which column of a table has features: lists of numbers."""
  names = [
    field.name
    for field in schema
    if str(field.type).startswith(("list<", "large_list<", "fixed_size_list<"))
    and str(field.type.value_type) in _FLOATS
  ]
  found = dict(zip(names, names, strict=True))
  return tables.choose(schema, wanted, "features", found)

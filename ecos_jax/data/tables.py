"""Rows of tables: parquet and Arrow files.

Hugging Face's `save_to_disk` writes Arrow files, its hub has parquet. A table
is read in order, a few rows at a time, so memory does not grow with the file.
Rows in random order cost more: a row group of parquet is read from its
beginning.
"""

from collections.abc import Iterator, Mapping
import contextlib
import functools
import json
from pathlib import Path
import threading
from typing import Any, NamedTuple

import numpy as np

from ecos_jax import errors
from ecos_jax.data import locations

SUFFIXES = (".arrow", ".parquet")
_ROWS = 64  # to read at once
_BUFFER_BYTES = 2**20
# What Hugging Face's datasets write into the folder of a dataset, of a split.
_SPLITS, _STATE = "dataset_dict.json", "state.json"


class _Opened(NamedTuple):
  """An open table.

  Attributes:
    schema: Its columns, in Arrow.
    sizes: Number of rows of each group; a group can be read alone.
    batches: Yields the record batches of a group, with some columns.
  """

  schema: Any
  sizes: list[int]
  batches: Any


def arrow(what: str) -> Any:
  """Returns pyarrow, which is imported only where a table is read.

  Args:
    what: The file to read.

  Raises:
    EcosError: It is not installed.
  """
  try:
    import pyarrow.compute
    import pyarrow.parquet
  except ImportError:
    raise errors.EcosError(
      f"to read {what}: pip install 'ecos_jax[parquet]'"
    ) from None
  return pyarrow


@contextlib.contextmanager
def _opened(file: locations.File) -> Iterator[_Opened]:
  """Opens a table.

  Raises:
    ValueError, OSError: It is damaged.
  """
  pa = arrow(file.path)
  try:
    if file.path.endswith(".arrow"):
      with pa.memory_map(file.path) as stream:
        yield _of_arrow(pa, stream)
    else:
      with (
        file.fs.open(file.path, "rb") as stream,
        pa.parquet.ParquetFile(
          stream, buffer_size=_BUFFER_BYTES, pre_buffer=False
        ) as table,
      ):
        yield _of_parquet(table)
  except pa.ArrowException as error:
    raise ValueError(str(error).partition("\n")[0]) from error


def _of_arrow(pa: Any, stream: Any) -> _Opened:
  magic = stream.read(6)
  stream.seek(0)
  if magic == b"ARROW1":
    table = pa.ipc.open_file(stream).read_all()
  else:
    table = pa.ipc.open_stream(stream).read_all()
  found = table.to_batches()

  def batches(group: int, columns: list[str]):
    some = found[group].select([column.partition(".")[0] for column in columns])
    for start in range(0, len(some), _ROWS):
      batch = some.slice(start, _ROWS)
      batch.validate(full=True)
      yield batch

  return _Opened(table.schema, [len(batch) for batch in found], batches)


def _of_parquet(table: Any) -> _Opened:
  meta = table.metadata

  def batches(group: int, columns: list[str]):
    return table.iter_batches(_ROWS, [group], columns, use_threads=False)

  sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
  return _Opened(table.schema_arrow, sizes, batches)


class Table:
  """A table, whose metadata are read when they are needed."""

  def __init__(self, file: locations.File):
    """Opens nothing yet."""
    self.file = file

  @functools.cached_property
  def _meta(self) -> tuple[Any, np.ndarray]:
    with _opened(self.file) as table:
      return table.schema, np.cumsum([0, *table.sizes])

  @property
  def schema(self) -> Any:
    """Returns the columns, in Arrow."""
    return self._meta[0]

  @property
  def starts(self) -> np.ndarray:
    """Returns the first row of each group, and last the number of rows."""
    return self._meta[1]

  def parts(
    self, group: int, columns: list[str]
  ) -> Iterator[tuple[int, list[Any]]]:
    """Yields (first row, values of each column) of a group, some rows at once.

    Args:
      group: Its number.
      columns: Names; `a.b` is the field b of the column a.
    """
    start = int(self.starts[group])
    with _opened(self.file) as table:
      for batch in table.batches(group, columns):
        values = []
        for column in columns:
          top, *fields = column.split(".")
          found = batch.column(batch.schema.get_field_index(top))
          for field in fields:
            found = found.field(field)
          values.append(found)
        yield start, values
        start += len(batch)


class Reader:
  """Reads rows of a column; rows in ascending order are read once.

  It keeps its place in one open table.
  """

  def __init__(self):
    """Opens nothing yet."""
    self._lock = threading.Lock()
    self._place: tuple[Table, int] | None = None
    self._parts: Iterator[tuple[int, list[Any]]] = iter(())
    self._start = 0
    self._values: Any = ()

  def read(self, table: Table, column: str, rows: np.ndarray) -> Iterator[Any]:
    """Yields the values of rows, as Arrow arrays in the order of the rows.

    Args:
      table: The table.
      column: As in `Table.parts`.
      rows: int64 [n], ascending.

    Raises:
      OSError, ValueError: The table is damaged.
    """
    pa = arrow(table.file.path)
    with self._lock:
      while len(rows):
        self._seek(table, column, int(rows[0]))
        end = self._start + len(self._values)
        count = int(np.searchsorted(rows, end))
        yield self._values.take(pa.array(rows[:count] - self._start))
        rows = rows[count:]

  def _seek(self, table: Table, column: str, row: int) -> None:
    """Reads on until the values hold a row."""
    group = int(np.searchsorted(table.starts, row, "right")) - 1
    if self._place != (table, group) or row < self._start:
      self._place = table, group
      self._parts = table.parts(group, [column])
      self._start, self._values = 0, ()
    while row >= self._start + len(self._values):
      part = next(self._parts, None)
      if part is None:
        self._place = None
        raise ValueError("it has fewer rows than it says")
      self._start, [self._values] = part


def choose(
  schema: Any, wanted: str | None, what: str, found: Mapping[str, str]
) -> str:
  """Returns which column of a table to read.

  Args:
    schema: The table's columns, in Arrow.
    wanted: The column that a user named; None: the only one that can be it.
    what: What the column must hold, for errors.
    found: The columns that can be it, and for each what to return.

  Raises:
    ValueError: There is none, or more than one.
  """
  if wanted is None and len(found) == 1:
    return next(iter(found.values()))
  if wanted in found:
    return found[wanted]
  if wanted is not None and wanted not in schema.names:
    raise ValueError(
      f"it has no column {wanted}, but {', '.join(schema.names)}"
    )
  if found and wanted is None:
    raise ValueError(
      f"columns that may hold {what} are {', '.join(found)}: name one, as "
      f"PATH#{next(iter(found))}"
    )
  columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
  raise ValueError(
    f"no column holds {what}: it has {columns}; images are bytes, for "
    "parquet:PATH, and features lists of floating-point numbers, for "
    "features:PATH"
  )


def find(
  pattern: str,
  suffixes: tuple[str, ...] = SUFFIXES,
  depth: int | None = None,
) -> locations.Found:
  """Returns the tables that a pattern names; see `locations.find`.

  Args:
    pattern: As in `locations.find`.
    suffixes: As in `locations.find`.
    depth: As in `locations.find`.

  Raises:
    EcosError: There is none, or it is a folder of several splits.
  """
  folder = Path(pattern)
  if (folder / _SPLITS).is_file():
    splits = sorted(path.parent.name for path in folder.glob(f"*/{_STATE}"))
    raise errors.EcosError(
      f"{pattern} holds several splits: name one of {', '.join(splits)}, as "
      f"{folder / splits[0] if splits else folder}"
    )
  found = locations.find(pattern, suffixes, depth)
  if (folder / _STATE).is_file():
    # Other files beside them are caches.
    try:
      state = json.loads((folder / _STATE).read_bytes())
      named = {entry["filename"] for entry in state["_data_files"]}
    except (ValueError, LookupError, TypeError) as error:
      raise errors.EcosError(f"{folder / _STATE} is damaged") from error
    found = found._replace(files=[f for f in found.files if f.name in named])
  if any(
    file.path.endswith(".arrow") and "://" in pattern for file in found.files
  ):
    raise errors.EcosError(
      f"{pattern} has .arrow files, which cannot be read from a bucket: store "
      "parquet there, or copy them to a disk"
    )
  return found

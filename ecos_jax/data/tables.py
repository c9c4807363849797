"""Tables with a column of images or of features: parquet and Arrow files.

Hugging Face's `save_to_disk` writes Arrow files, its hub has parquet. A table
is read in order, a few rows at a time, so memory does not grow with the file.
Rows in random order cost more: a row group of parquet is read from its
beginning.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import json
from pathlib import Path
import threading
from typing import Any, NamedTuple

import numpy as np

from ecos_jax import errors
from ecos_jax.data import locations
from ecos_jax.data import records

SUFFIXES = (".arrow", ".parquet")
_ROWS = 64  # to read at once
_BUFFER_BYTES = 2**20
_LABEL = "label"
# Types of Arrow as types of numpy.
FLOATS = {"halffloat": "f2", "float": "f4", "double": "f8"}
# What Hugging Face's datasets write into the folder of a dataset, of a split.
_SPLITS, _STATE = "dataset_dict.json", "state.json"


class _Opened(NamedTuple):
  """An open table.

  Attributes:
    schema: Its columns, in Arrow.
    sizes: Rows of each of its groups, which can be read alone.
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
  """Reads rows of a column, on from where it stopped; one file is open."""

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


def image_column(schema: Any, wanted: str | None) -> str:
  """Returns where a table has the files of images: a column of bytes.

  Hugging Face's datasets have a column of `bytes` and `path`; a path alone is
  not followed.

  Args:
    schema: Of the table, in Arrow.
    wanted: The column; None: the only one that can be it.

  Raises:
    ValueError: There is none, or more than one.
  """
  found = {}
  for field in schema:
    if _is_bytes(field.type):
      found[field.name] = field.name
    elif str(field.type).startswith("struct<"):
      for inner in field.type:
        if inner.name == "bytes" and _is_bytes(inner.type):
          found[field.name] = f"{field.name}.bytes"
  if wanted is None and len(found) == 1:
    return next(iter(found.values()))
  if wanted in found:
    return found[wanted]
  raise ValueError(_which("images", wanted, list(found), schema))


def list_column(schema: Any, wanted: str | None) -> str:
  """Returns which column of a table has features: lists of numbers.

  Args:
    schema: Of the table, in Arrow.
    wanted: The column; None: the only one that can be it.

  Raises:
    ValueError: There is none, or more than one.
  """
  found = [
    field.name
    for field in schema
    if str(field.type).startswith(("list<", "large_list<", "fixed_size_list<"))
    and str(field.type.value_type) in FLOATS
  ]
  if wanted in found:
    return str(wanted)
  if wanted is None and len(found) == 1:
    return found[0]
  raise ValueError(_which("features", wanted, found, schema))


def _is_bytes(kind: Any) -> bool:
  return str(kind) in ("binary", "large_binary", "binary_view")


def _which(what: str, wanted: str | None, found: list[str], schema: Any) -> str:
  if wanted is not None and wanted not in schema.names:
    return f"it has no column {wanted}, but {', '.join(schema.names)}"
  if found and wanted is None:
    return (
      f"columns that may hold {what} are {', '.join(found)}: name one, as "
      f"PATH#{found[0]}"
    )
  columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
  return (
    f"no column holds {what}: it has {columns}; images are bytes, for "
    "parquet:PATH, and features lists of floating-point numbers, for "
    "features:PATH"
  )


class TableShard:
  """A table whose column holds images; see `records.Container`."""

  def __init__(self, file: locations.File, column: str | None, reader: Reader):
    """Opens nothing yet.

    Args:
      file: The table.
      column: The column; None: the only one of images.
      reader: Which all tables of a source share.
    """
    self.name, self.version = file.name, f"{file.version} {column}"
    self._table = Table(file)
    self._wanted = column
    self._reader = reader

  @functools.cached_property
  def _column(self) -> str:
    return image_column(self._table.schema, self._wanted)

  def scan(self) -> Iterator[records.Found]:
    """Yields the images; the class is that in the column `label`."""
    schema = self._table.schema
    names = _class_names(schema)
    columns = [self._column]
    if _LABEL in schema.names:
      columns.append(_LABEL)
    for group in range(len(self._table.starts) - 1):
      for start, (images, *labels) in self._table.parts(group, columns):
        classes = labels[0].to_pylist() if labels else [None] * len(images)
        for i, (data, label) in enumerate(zip(images, classes, strict=True)):
          row = start + i
          found = records.Found(f"{self.name}/{row}", (row,), data.as_py())
          if found.data is None:
            found = found._replace(data=b"", why="it has no bytes")
          found = found.labelled(label)
          if names and 0 <= found.label < len(names):
            found = found.labelled(names[found.label])
          yield found

  def read(self, places: Sequence[tuple[int, ...]]) -> list[bytes]:
    """Returns the files of some images."""
    rows = np.array([row for (row,) in places])
    order = np.argsort(rows)
    parts = self._reader.read(self._table, self._column, rows[order])
    found = [data for part in parts for data in part.to_pylist()]
    result = [b""] * len(rows)
    for place, data in zip(order, found, strict=True):
      result[place] = data or b""
    return result


def _class_names(schema: Any) -> list[str]:
  """Returns the names of the classes that Hugging Face's datasets store."""
  try:
    stored = json.loads((schema.metadata or {})[b"huggingface"])
    names = stored["info"]["features"][_LABEL]["names"]
    return [name for name in names if isinstance(name, str)]
  except (ValueError, LookupError, TypeError, RecursionError):
    return []


def find(
  pattern: str,
  suffixes: tuple[str, ...] = SUFFIXES,
  depth: int | None = None,
) -> locations.Found:
  """Returns the tables that a pattern names; see `locations.find`.

  Args:
    pattern: As there.
    suffixes: As there.
    depth: As there.

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


def open_images(
  pattern: str, column: str | None, **options: Any
) -> records.RecordSource:
  """Returns the images in a column of tables.

  Args:
    pattern: As in `locations.find`.
    column: The column; None: the only one of images.
    **options: As in `records.RecordSource`.

  Raises:
    EcosError: There is no file, column or image, or pyarrow is not installed.
  """
  arrow(pattern)
  found, reader = find(pattern), Reader()
  shards = [TableShard(file, column, reader) for file in found.files]
  return records.RecordSource(found.name, shards, **options)


def download(name: str, configuration: str, split: str) -> str:
  """Returns the folder of a split of a dataset of the Hugging Face hub.

  The hub keeps all its datasets as parquet too, which is what is fetched, and
  kept in the library's cache.

  Args:
    name: OWNER/NAME.
    configuration: Of the dataset; most have only `default`.
    split: Such as `train`.

  Raises:
    EcosError: It cannot be fetched, or huggingface_hub is not installed.
  """
  source = f"hub:{name}/{configuration}:{split}"
  try:
    import huggingface_hub  # pyrefly: ignore[missing-import]
  except ImportError:
    raise errors.EcosError(
      f"to read {source}: pip install 'ecos_jax[hub,parquet]'"
    ) from None
  folder = f"{configuration}/{split}"
  try:
    path = huggingface_hub.snapshot_download(
      name,
      repo_type="dataset",
      revision="refs/convert/parquet",
      allow_patterns=f"{folder}/*.parquet",
    )
  # The hub's errors and those of its network have no common class.
  except Exception as error:
    why = str(error).partition("\n")[0]
    raise errors.EcosError(f"cannot fetch {source}: {why}") from error
  return f"{path}/{folder}"

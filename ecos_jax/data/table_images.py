"""Images in a column of tables, on a disk, in a bucket or on the hub."""

from collections.abc import Iterator, Sequence
import functools
import json
from typing import Any

import numpy as np

from ecos_jax import errors
from ecos_jax.data import containers
from ecos_jax.data import locations
from ecos_jax.data import tables

_LABEL = "label"


def _column(schema: Any, wanted: str | None) -> str:
  """Returns where a table has the files of images: a column of bytes.

  Hugging Face's datasets have a column of `bytes` and `path`; a path alone is
  not followed.

  Args:
    schema: The table's columns, in Arrow.
    wanted: As in `tables.choose`.

  Raises:
    ValueError: As in `tables.choose`.
  """
  found = {}
  for field in schema:
    if _is_bytes(field.type):
      found[field.name] = field.name
    elif str(field.type).startswith("struct<"):
      for inner in field.type:
        if inner.name == "bytes" and _is_bytes(inner.type):
          found[field.name] = f"{field.name}.bytes"
  return tables.choose(schema, wanted, "images", found)


def _is_bytes(kind: Any) -> bool:
  return str(kind) in ("binary", "large_binary", "binary_view")


class TableShard:
  """A table whose column holds images; see `containers.Container`."""

  def __init__(
    self, file: locations.File, column: str | None, reader: tables.Reader
  ):
    """Opens nothing yet.

    Args:
      file: The table.
      column: The column; None: the only one of images.
      reader: Reads tables; all those of a source share it.
    """
    self.name, self.version = file.name, f"{file.version} {column}"
    self._table = tables.Table(file)
    self._wanted = column
    self._reader = reader

  @functools.cached_property
  def _column(self) -> str:
    return _column(self._table.schema, self._wanted)

  def scan(self) -> Iterator[containers.Found]:
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
          found = containers.Found(f"{self.name}/{row}", (row,), data.as_py())
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


def open_images(
  pattern: str, column: str | None, **options: Any
) -> containers.ContainerSource:
  """Returns the images in a column of tables.

  Args:
    pattern: As in `locations.find`.
    column: The column; None: the only one of images.
    **options: As in `containers.ContainerSource`.

  Raises:
    EcosError: There is no file, column or image, or pyarrow is not installed.
  """
  tables.arrow(pattern)
  found, reader = tables.find(pattern), tables.Reader()
  shards = [TableShard(file, column, reader) for file in found.files]
  return containers.ContainerSource(found.name, shards, **options)


def download(name: str, configuration: str, split: str) -> str:
  """Returns the folder of a split of a dataset of the Hugging Face hub.

  The hub keeps all its datasets as parquet too, which is what is fetched, and
  kept in the library's cache.

  Args:
    name: OWNER/NAME.
    configuration: The dataset's configuration; most have only `default`.
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

"""Small images as files, in a tar file or a table, for tests."""

import io
from pathlib import Path
import tarfile

import numpy as np
from PIL import Image
import pyarrow
from pyarrow import parquet

IMAGE = pyarrow.struct(
  [("bytes", pyarrow.binary()), ("path", pyarrow.string())]
)


def png(level: int, size: int = 12) -> bytes:
  """Returns a PNG file of one grey, which `level` tells apart from others."""
  pixels = np.full((size, size, 3), level % 256, np.uint8)
  pixels[0, 0] = level // 256
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
  """Returns a tar file with these files, in this order."""
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode=mode) as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return out.getvalue()


def table(
  levels: range, labels: list | None = None, metadata: dict | None = None
) -> pyarrow.Table:
  """Returns a table as Hugging Face's datasets make one of images."""
  rows = [{"bytes": png(level), "path": f"{level}.png"} for level in levels]
  columns = {"image": pyarrow.array(rows, IMAGE)}
  if labels is not None:
    columns["label"] = pyarrow.array(labels)
  return pyarrow.table(columns).replace_schema_metadata(metadata)


def write_parquet(made: pyarrow.Table, rows: int = 7) -> bytes:
  """Returns a parquet file with `rows` rows in a row group."""
  out = io.BytesIO()
  parquet.write_table(made, out, row_group_size=rows)
  return out.getvalue()


def write_arrow(made: pyarrow.Table, path: Path, rows: int = 9) -> None:
  """Writes an Arrow file with `rows` rows in a record batch."""
  with (
    pyarrow.OSFile(str(path), "wb") as file,
    pyarrow.ipc.new_stream(file, made.schema) as writer,
  ):
    writer.write_table(made, max_chunksize=rows)


def random(*shape: int, seed: int = 0) -> np.ndarray:
  """Returns random uint8 pixels."""
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> None:
  """Writes an image file, and makes its folder if need be."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **options)

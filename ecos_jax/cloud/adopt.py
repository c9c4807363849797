"""Makes a feature bank of existing `.npy` files of features.

No file is copied: the manifest is written beside the files. Rows that are not
finite are refused, and the error names them.
"""

import hashlib
from pathlib import Path

import numpy as np
import tqdm

from ecos_jax import distributed
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import encode
from ecos_jax.cloud import storage
from ecos_jax.data import array_files
from ecos_jax.data import features as feature_files
from ecos_jax.data import pools
from ecos_jax.encoders import registry

_BLOCK_BYTES = 16 << 20


def from_npy(
  path: Path | str, *, encoder: str, pool: str
) -> bank_lib.FeatureBank:
  """Returns the bank of existing `.npy` files; writes a manifest beside them.

  Nothing is copied. Process 0 reads everything once, to compute checksums and
  to find numbers that are not finite.

  Args:
    path: Folder or URL with `.npy` files, all float16 or all float32 [rows, d];
      in the order of their names they are the rows of the pool.
    encoder: Digest of the encoder that made the features.
    pool: Digest of the pool.

  Raises:
    BankError: There is no such file, two do not fit together, or a row is not
      finite.
  """
  folder = storage.Folder(path)
  distributed.first(lambda: _adopt_all(folder, encoder, pool))
  return bank_lib.FeatureBank.open(path)


def of_features(
  path: Path, pool: pools.Pool, encoder: registry.Encoder, shard_rows: int
) -> bank_lib.FeatureBank:
  """Returns the bank of a pool of features.

  For local .npy files the bank is links and a manifest, so the folder of the
  files is not changed, and may be read-only. Other files are copied; so are all
  files on a disk without links.

  Args:
    path: The folder of the bank.
    pool: A pool of features.
    encoder: `registry.identity`.
    shard_rows: Rows of a shard that is copied.

  Raises:
    BankError: As in `from_npy` and `encode.build`.
  """
  files = [file for source in pool.feature_sources for file in source.files]

  def link() -> bool:
    if not all(file.is_local and file.path.endswith(".npy") for file in files):
      return False
    for number, file in enumerate(files):
      shard = path / bank_lib.shard_file(number)
      shard.unlink(missing_ok=True)
      try:
        shard.symlink_to(Path(file.path).resolve())
      except OSError:
        return False
    return True

  if distributed.first(link):
    return from_npy(path, encoder=encoder.digest, pool=pool.digest)
  types = [source.dtype for source in pool.feature_sources]
  dtype = "float16" if np.result_type(*types) == np.float16 else "float32"
  return encode.build(path, pool, encoder, dtype=dtype, shard_rows=shard_rows)


def _adopt_all(folder: storage.Folder, encoder: str, pool: str) -> None:
  """Writes the manifest of the `.npy` files in a folder."""
  sizes = folder.sizes()
  files = sorted(file for file in sizes if file.endswith(".npy"))
  shards: list[bank_lib.Shard] = []
  dimension, dtype, rows = 0, "", 0
  for file in tqdm.tqdm(files, desc="reading", unit=" files", disable=None):
    shard, d, kind = _adopt(folder, file, sizes[file], rows)
    if shards and (d, kind) != (dimension, dtype):
      raise storage.BankError(
        f"{folder.path(file)} holds rows of {d} x {kind}, the files "
        f"before it {dimension} x {dtype}"
      )
    dimension, dtype = d, kind
    shards.append(shard)
    rows += shard.rows
  if not rows:
    raise storage.BankError(f"{folder.name} holds no .npy files with rows")
  identity = bank_lib.identity(
    rows, dimension, dtype, encoder=encoder, pool=pool
  )
  bank_lib.write_manifest(folder, identity, shards)


def _adopt(
  folder: storage.Folder, file: str, size: int, start: int
) -> tuple[bank_lib.Shard, int, str]:
  """Returns the shard of an existing .npy file, its d and its dtype."""
  # Errors name the user's own file, not a link to it.
  link = folder.path(file)
  path = Path(link).resolve() if Path(link).is_symlink() else link
  try:
    with folder.fs.open(link, "rb") as stream:
      shape, fortran, dtype = array_files.header(stream)
      offset = stream.tell()
  except ValueError:
    raise storage.BankError(f"{path} is no .npy file of numbers") from None
  known = dtype.name in bank_lib.DTYPES and dtype.isnative
  if len(shape) != 2 or fortran or not known:
    raise storage.BankError(
      f"{path} must hold a C-ordered [rows, d] array of float16 or float32, "
      f"got {dtype} {list(shape)}"
    )
  rows, d = shape
  if size != offset + rows * d * dtype.itemsize:
    raise storage.BankError(f"{path} is truncated")
  header = bytearray(offset)
  folder.read_into(file, 0, memoryview(header))
  sha = hashlib.sha256(header)
  count = max(_BLOCK_BYTES // max(d * dtype.itemsize, 1), 1)
  for first in range(0, rows, count):
    block = np.empty((min(count, rows - first), d), dtype)
    folder.read_into(
      file, offset + first * d * dtype.itemsize, storage.raw_bytes(block)
    )
    sha.update(storage.raw_bytes(block))
    bad = np.flatnonzero(feature_files.unusable(block))[:5]
    if len(bad):
      low, high = block[bad[0]].min(), block[bad[0]].max()
      raise storage.BankError(
        f"{path}: rows {', '.join(map(str, first + bad))} hold NaN, infinite "
        f"or huge values ({low:g} to {high:g} in row {first + bad[0]}): leave "
        "out rows with missing values"
      )
    if start == first == 0 and dtype == np.float16:
      bank_lib.check_float16(
        block, f"save {path} as float32, or subtract their mean"
      )
  shard = bank_lib.Shard(file, start, rows, offset, size, sha.hexdigest())
  return shard, d, dtype.name

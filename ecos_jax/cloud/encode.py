"""Builds a feature bank: encodes a pool, or adopts `.npy` files of features.

Reading, encoding and writing overlap, and an interrupted build continues after
its complete shards. Several processes share the shards, and process 0 writes
the manifest once all are there. An adopted file is not copied: the manifest is
written beside it. Features that are not finite are refused, with their rows.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import threads
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import storage
from ecos_jax.clustering import centring
from ecos_jax.data import array_files
from ecos_jax.data import features as feature_files
from ecos_jax.data import pools
from ecos_jax.encoders import registry

_DTYPES = ("float16", "float32")
_BLOCK_BYTES = 16 << 20
# At a mean of so many spreads, float16's rounding is some 7 % of the spread.
_FAR = 512.0
# Shards in memory that are being written.
_WRITES = 4


def _check_float16(features: np.ndarray, remedy: str) -> None:
  """Raises BankError if float16 cannot tell features [n, d] apart."""
  if centring.offset(features, _FAR).any():
    raise storage.BankError(
      f"the mean of the features is over {_FAR:g} times their spread, where "
      f"float16 rounds most of the differences away: {remedy}"
    )


def _shard_file(number: int) -> str:
  return f"shard-{number:06d}.npy"


def _fragment_file(number: int) -> str:
  return f"shard-{number:06d}.json"


def _write_manifest(
  folder: storage.Folder,
  identity: dict[str, Any],
  shards: Sequence[bank_lib.Shard],
) -> None:
  manifest = identity | {"shards": [shard._asdict() for shard in shards]}
  folder.write(bank_lib.MANIFEST, json.dumps(manifest, indent=2).encode())


def _check_identity(
  folder: storage.Folder, found: dict[str, Any], identity: dict[str, Any]
) -> None:
  for name, wanted in identity.items():
    if found.get(name) != wanted:
      raise storage.BankError(
        f"{folder.name} holds another feature bank: its {name} was "
        f"{found.get(name)}, now is {wanted}; delete it, or take another folder"
      )


def _write_shard(
  folder: storage.Folder,
  identity: dict[str, Any],
  number: int,
  start: int,
  encoded: np.ndarray,
) -> None:
  # What float16 cannot hold becomes infinite, and is refused by name.
  with np.errstate(over="ignore"):
    features = encoded.astype(identity["dtype"])
  bad = np.flatnonzero(feature_files.unusable(features))[:5]
  if len(bad):
    raise storage.BankError(
      f"the features of samples {', '.join(map(str, start + bad))} are not "
      f"finite in {features.dtype}, or huge: look at these samples, or set "
      "`bank.dtype`=float32"
    )
  if number == 0 and features.dtype == np.float16:
    _check_float16(encoded, "set `bank.dtype`=float32")
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, np.lib.format.header_data_from_array_1_0(features)
  )
  parts = header.getvalue(), storage.raw_bytes(features)
  shard = bank_lib.Shard(
    _shard_file(number),
    start,
    len(features),
    len(parts[0]),
    len(parts[0]) + len(parts[1]),
    files.digest(*parts),
  )
  folder.write(shard.file, *parts)
  fragment = {"identity": identity, "shard": shard._asdict()}
  folder.write(_fragment_file(number), json.dumps(fragment).encode())


def _read_fragment(
  folder: storage.Folder, number: int
) -> tuple[dict[str, Any], bank_lib.Shard]:
  """Returns the identity of a bank, and one of its shards."""
  file = _fragment_file(number)
  fragment = folder.read_json(file)
  try:
    return dict(fragment["identity"]), bank_lib.Shard(**fragment["shard"])
  except (KeyError, TypeError, ValueError):
    raise folder.damaged(file) from None


def _unfinished(
  folder: storage.Folder, identity: dict[str, Any], ranges: Sequence[range]
) -> list[int] | None:
  """Returns the shards to make; None if there is a manifest already."""
  sizes = folder.sizes()
  if bank_lib.MANIFEST in sizes:
    _check_identity(folder, folder.read_json(bank_lib.MANIFEST), identity)
    return None
  todo = []
  for number, rows in enumerate(ranges):
    complete = False
    if _fragment_file(number) in sizes:
      found, shard = _read_fragment(folder, number)
      _check_identity(folder, found, identity)
      complete = (shard.start, shard.rows) == (rows.start, len(rows)) and (
        sizes.get(shard.file) == shard.size
      )
    if not complete:
      todo.append(number)
  return todo


class Earlier(NamedTuple):
  """A bank that has features of some samples of a pool already.

  Attributes:
    bank: Made with the same encoder, of numbers of the same type.
    rows: int64 [N], its row for each sample of the pool; -1 if there is none.
  """

  bank: bank_lib.FeatureBank
  rows: np.ndarray


def build(
  path: Path | str,
  pool: pools.Pool,
  encoder: registry.Encoder,
  *,
  dtype: str = "float16",
  shard_rows: int = 8192,
  batch_size: int = 1024,
  earlier: Earlier | None = None,
) -> bank_lib.FeatureBank:
  """Returns the bank of a pool, after encoding the shards that are missing.

  All processes must call this alike; each encodes a part of the shards.

  Args:
    path: A folder, or a URL that fsspec knows.
    pool: The images; or features, which are copied.
    encoder: Maps a batch of images to float32 [b, d].
    dtype: Of the numbers in the bank, 'float16' or 'float32'.
    shard_rows: Rows of a shard.
    batch_size: Images to encode at once.
    earlier: Where features are copied from instead of being made anew.

  Raises:
    BankError: The pool is empty, the folder holds another bank, or features
      are not finite.
    PreemptedError: The process was told to stop; whole shards are kept.
  """
  if dtype not in _DTYPES:
    raise storage.BankError(
      f"`bank.dtype`={dtype}: it must be one of {', '.join(_DTYPES)}"
    )
  n = len(pool)
  if not n:
    raise storage.BankError("the pool is empty: nothing to encode")
  folder = storage.Folder(path)
  folder.make()
  identity = {
    "version": bank_lib.VERSION,
    "rows": n,
    "dimension": encoder.dimension,
    "dtype": dtype,
    "encoder": encoder.digest,
    "pool": pool.digest,
  }
  ranges = [range(i, min(i + shard_rows, n)) for i in range(0, n, shard_rows)]
  # Process 0 decides, since others may see its files a little later.
  todo = distributed.first(lambda: _unfinished(folder, identity, ranges))
  if todo is not None:
    own = todo[jax.process_index() :: jax.process_count()]
    shards = [(number, ranges[number]) for number in own]
    encoded = _encoded(pool, encoder, batch_size, shards, earlier)
    write = functools.partial(_write_shard, folder, identity)
    with distributed.saving():
      # Writing in threads hides the latency of a bucket.
      for _ in threads.ahead(lambda shard: write(*shard), encoded, _WRITES - 1):
        pass
      distributed.barrier()
      if distributed.first(distributed.told_to_stop):
        raise errors.PreemptedError
    distributed.first(lambda: _complete(folder, identity, len(ranges)))
  return bank_lib.FeatureBank.open(path)


def _encoded(
  pool: pools.Pool,
  encoder: registry.Encoder,
  batch_size: int,
  shards: Sequence[tuple[int, range]],
  earlier: Earlier | None,
) -> Iterator[tuple[int, int, np.ndarray]]:
  """Yields (number, first row, features) of shards; ends early if told to.

  A thread reads the next images while the device encodes.
  """
  batches = [
    (number, rows, batch)
    for number, rows in shards
    for start in rows[::batch_size]
    for batch in [range(start, min(start + batch_size, rows.stop))]
  ]

  def read(batch: tuple[int, range, range]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features of a batch, and the images of those to encode."""
    indices = np.arange(batch[2].start, batch[2].stop)
    if encoder.name == registry.IDENTITY:
      return pool.features(indices), indices[:0]
    found = np.empty((len(indices), encoder.dimension), np.float32)
    if earlier is not None:
      rows = earlier.rows[indices]
      found[rows >= 0] = earlier.bank.take(rows[rows >= 0])
      indices = indices[rows < 0]
    return found, pool.images(indices, encoder.image_size)

  progress = tqdm.tqdm(
    total=sum(len(rows) for _, rows in shards),
    desc="encoding",
    unit=" images",
    disable=None,
  )
  features = np.zeros((0, encoder.dimension), np.float32)
  with progress:
    ready = threads.ahead(read, batches, 1)
    for number, rows, batch in batches:
      if batch.start == rows.start:
        features = np.empty((len(rows), encoder.dimension), np.float32)
      found, images = next(ready)
      if len(images):
        new = slice(None)
        if earlier is not None:
          new = earlier.rows[batch.start : batch.stop] < 0
        found[new] = registry.encode(encoder, images, batch_size)
      features[batch.start - rows.start :][: len(batch)] = found
      progress.update(len(batch))
      if batch.stop == rows.stop:
        yield number, rows.start, features
      if distributed.told_to_stop():
        return


def _complete(
  folder: storage.Folder, identity: dict[str, Any], count: int
) -> None:
  """Writes the manifest of a bank whose shards are all there."""
  shards = [_read_fragment(folder, number)[1] for number in range(count)]
  _write_manifest(folder, identity, shards)
  with contextlib.suppress(OSError):
    folder.fs.rm([folder.path(_fragment_file(n)) for n in range(count)])


def _adopt(folder: storage.Folder, file: str, size: int, start: int):
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
  known = dtype.name in _DTYPES and dtype.isnative
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
      _check_float16(block, f"save {path} as float32, or subtract their mean")
  shard = bank_lib.Shard(file, start, rows, offset, size, sha.hexdigest())
  return shard, d, dtype.name


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

  Of local .npy files it consists of links and a manifest, so the folder of the
  files is not changed, and may be read-only. Other files are copied, and so are
  all where the disk knows no links.

  Args:
    path: The folder of the bank.
    pool: Of features.
    encoder: The identity.
    shard_rows: Rows of a shard that is copied.

  Raises:
    BankError: As in `from_npy` and `build`.
  """
  files = [file for source in pool.feature_sources for file in source.files]

  def link() -> bool:
    if not all(file.is_local and file.path.endswith(".npy") for file in files):
      return False
    for number, file in enumerate(files):
      shard = path / _shard_file(number)
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
  return build(path, pool, encoder, dtype=dtype, shard_rows=shard_rows)


def _adopt_all(folder: storage.Folder, encoder: str, pool: str) -> None:
  sizes = folder.sizes()
  files = sorted(file for file in sizes if file.endswith(".npy"))
  shards: list[bank_lib.Shard] = []
  kind = None
  rows = 0
  for file in tqdm.tqdm(files, desc="reading", unit=" files", disable=None):
    shard, *found = _adopt(folder, file, sizes[file], rows)
    if kind is not None and found != kind:
      raise storage.BankError(
        f"{folder.path(file)} holds rows of {found[0]} x {found[1]}, the files "
        f"before it {kind[0]} x {kind[1]}"
      )
    kind = found
    shards.append(shard)
    rows += shard.rows
  if kind is None or not rows:
    raise storage.BankError(f"{folder.name} holds no .npy files with rows")
  identity = {
    "version": bank_lib.VERSION,
    "rows": rows,
    "dimension": kind[0],
    "dtype": kind[1],
    "encoder": encoder,
    "pool": pool,
  }
  _write_manifest(folder, identity, shards)

"""Builds a feature bank: encodes the images of a pool.

Reading, encoding and writing overlap, and an interrupted build continues after
its complete shards. Several processes share the shards, and process 0 writes
the manifest once all are there. Features that are not finite are refused, and
the error names their samples.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
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
from ecos_jax.data import features as feature_files
from ecos_jax.data import pools
from ecos_jax.encoders import registry

# Shards in memory that are being written.
_WRITES = 4


def _fragment_file(number: int) -> str:
  return f"shard-{number:06d}.json"


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
    bank_lib.check_float16(encoded, "set `bank.dtype`=float32")
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, np.lib.format.header_data_from_array_1_0(features)
  )
  parts = header.getvalue(), storage.raw_bytes(features)
  shard = bank_lib.Shard(
    bank_lib.shard_file(number),
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
    bank: A bank of the same encoder and dtype.
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
    dtype: Type of the bank, 'float16' or 'float32'.
    shard_rows: Rows of a shard.
    batch_size: Images to encode at once.
    earlier: Where features are copied from instead of being made anew.

  Raises:
    BankError: The folder holds another bank, or features are not finite.
    PreemptedError: The process was told to stop; whole shards are kept.
  """
  if dtype not in bank_lib.DTYPES:
    raise storage.BankError(
      f"`bank.dtype`={dtype}: it must be one of {', '.join(bank_lib.DTYPES)}"
    )
  n = len(pool)
  folder = storage.Folder(path)
  folder.make()
  identity = bank_lib.identity(
    n, encoder.dimension, dtype, encoder=encoder.digest, pool=pool.digest
  )
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
  bank_lib.write_manifest(folder, identity, shards)
  with contextlib.suppress(OSError):
    folder.fs.rm([folder.path(_fragment_file(n)) for n in range(count)])

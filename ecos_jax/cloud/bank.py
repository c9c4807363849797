"""The feature bank: the features of the whole pool on disk, row i = sample i.

A bank is a folder, local or in a bucket (fsspec), of `.npy` shards, which every
tool reads, and `bank.json`: the rows, size and sha256 of every shard, and the
digests of the encoder and the pool. `bank.json` is written last. Until then a
small JSON file, written after each shard, says that the shard is complete: an
interrupted build continues after these.

Opening a bank compares the sizes of the shards, which costs one listing.
`verify` reads everything and compares checksums. A bank holds only finite
numbers: others are refused when it is built.
"""

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from ecos_jax import files
from ecos_jax import threads
from ecos_jax.cloud import storage
from ecos_jax.clustering import centring

MANIFEST = "bank.json"
VERSION = 1
DTYPES = ("float16", "float32")
# At a mean of this many spreads, float16 rounds by about 7 % of the spread.
_FAR = 512.0
_WINDOW_BYTES = 64 << 20
_ALIGNMENT = 64
# Blocks read ahead, each by its own thread: hides the latency of a bucket, and
# some of a cold disk's.
_AHEAD = 4


class Shard(NamedTuple):
  """Rows [start, start + rows) of a bank, in one file.

  Attributes:
    file: Its name.
    start: The first row.
    rows: Number of rows.
    offset: Bytes before the numbers.
    size: Bytes of the whole file.
    sha256: sha256 of the whole file, as hex.
  """

  file: str
  start: int
  rows: int
  offset: int
  size: int
  sha256: str


def shard_file(number: int) -> str:
  """Returns the name of the number-th shard that this package writes."""
  return f"shard-{number:06d}.npy"


def identity(
  rows: int, dimension: int, dtype: str, *, encoder: str, pool: str
) -> dict[str, Any]:
  """Returns what a manifest says of a bank before its shards.

  Args:
    rows: N.
    dimension: d.
    dtype: One of `DTYPES`.
    encoder: Digest of the encoder.
    pool: Digest of the pool.
  """
  return {
    "version": VERSION,
    "rows": rows,
    "dimension": dimension,
    "dtype": dtype,
    "encoder": encoder,
    "pool": pool,
  }


def write_manifest(
  folder: storage.Folder, identity: dict[str, Any], shards: Sequence[Shard]
) -> None:
  """Writes the manifest, with which a bank is finished."""
  manifest = identity | {"shards": [shard._asdict() for shard in shards]}
  folder.write(MANIFEST, json.dumps(manifest, indent=2).encode())


def check_float16(features: np.ndarray, remedy: str) -> None:
  """Raises BankError if float16 cannot tell features [n, d] apart."""
  if centring.offset(features, _FAR).any():
    raise storage.BankError(
      f"the mean of the features is over {_FAR:g} times their spread, where "
      f"float16 rounds most of the differences away: {remedy}"
    )


def _aligned(rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
  """Returns an array that JAX can use without a copy on CPU."""
  size = rows * columns * dtype.itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  skip = -memory.ctypes.data % _ALIGNMENT
  return memory[skip : skip + size].view(dtype).reshape(rows, columns)


class FeatureBank:
  """An open bank. Reads check lengths; only `verify` checks checksums.

  Attributes:
    shape: (N, d).
    dtype: float16 or float32.
    encoder: Digest of the encoder.
    pool: Digest of the pool.
    digest: sha256 (hex) of the manifest, which has the digests of all content.
  """

  def __init__(self, folder: storage.Folder, manifest: dict[str, Any]):
    """Use `open`, `encode.build` or `adopt.from_npy`."""
    self._folder = folder
    self._shards = [Shard(**shard) for shard in manifest["shards"]]
    self._starts = np.array([shard.start for shard in self._shards])
    self.shape: tuple[int, int] = (manifest["rows"], manifest["dimension"])
    self.dtype = np.dtype(manifest["dtype"])
    self.encoder: str = manifest["encoder"]
    self.pool: str = manifest["pool"]
    content = json.dumps(manifest, sort_keys=True).encode()
    self.digest: str = files.digest(content)

  @classmethod
  def open(cls, path: Path | str, digest: str | None = None) -> "FeatureBank":
    """Returns the bank in a folder, after checking the sizes of its files.

    Args:
      path: A folder, or a URL that fsspec knows.
      digest: The digest that the bank must have; None for any.

    Raises:
      BankError: The folder has no bank, a file is damaged or missing or of
        another size, or there is a .npy file that is not part of the bank.
    """
    folder = storage.Folder(path)
    sizes = folder.sizes()
    if MANIFEST not in sizes:
      raise storage.BankError(
        f"{path} holds no finished feature bank ({MANIFEST} is missing)"
      )
    manifest = folder.read_json(MANIFEST)
    if manifest.get("version") != VERSION:
      raise folder.error(
        MANIFEST,
        f"is of version {manifest.get('version')}, this program reads version "
        f"{VERSION}",
      )
    try:
      bank = cls(folder, manifest)
    except (KeyError, TypeError):
      raise folder.damaged(MANIFEST) from None
    if digest is not None and bank.digest != digest:
      raise folder.damaged(MANIFEST)
    for shard in bank._shards:
      if sizes.get(shard.file) != shard.size:
        state = (
          f"has {sizes[shard.file]} bytes instead of {shard.size}"
          if shard.file in sizes
          else "is missing"
        )
        raise folder.error(shard.file, state)
    listed = {shard.file for shard in bank._shards}
    foreign = sorted(f for f in sizes if f.endswith(".npy") and f not in listed)
    if foreign:
      raise storage.BankError(
        f"{folder.path(foreign[0])} does not belong to the feature bank beside "
        "it: move it elsewhere"
      )
    return bank

  def verify(self, *, alone: bool = False) -> None:
    """Reads every shard and compares checksums; processes share the work.

    Args:
      alone: Whether this process does all of it.

    Raises:
      BankError: A shard was altered.
    """
    own = self._shards
    if not alone:
      own = own[jax.process_index() :: jax.process_count()]
    for shard in tqdm.tqdm(
      own, desc="checking the bank", unit=" shards", disable=None
    ):
      if self._folder.sha256(shard.file) != shard.sha256:
        raise self._folder.error(shard.file, "was altered after it was written")

  def blocks(
    self, rows: int, part: slice = slice(None)
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, features [<= rows, d]) in order.

    Threads read the next blocks meanwhile into a few buffers: a block is valid
    until the next but one is asked for.

    Args:
      rows: Rows of a block; the last may have fewer.
      part: The rows of each block to read and yield, for a process that needs
        only these; the first row is still that of the whole block.
    """
    n, d = self.shape
    begin, end, _ = part.indices(rows)
    buffers = [
      _aligned(min(end - begin, n), d, self.dtype) for _ in range(_AHEAD + 2)
    ]

    def read(number: int) -> tuple[int, np.ndarray]:
      start = number * rows
      count = max(min(start + end, n) - start - begin, 0)
      block = buffers[number % len(buffers)][:count]
      self._read(start + begin, block)
      return start, block

    return threads.ahead(read, range(-(-n // rows)), _AHEAD)

  def _read(self, start: int, out: np.ndarray) -> None:
    """Fills `out` [m, d] with the rows from `start` on."""
    row_bytes = self.shape[1] * self.dtype.itemsize
    done = 0
    while done < len(out):
      row = start + done
      shard = self._shards[np.searchsorted(self._starts, row, "right") - 1]
      skip = row - shard.start
      count = min(len(out) - done, shard.rows - skip)
      self._folder.read_into(
        shard.file,
        shard.offset + skip * row_bytes,
        storage.raw_bytes(out[done : done + count]),
      )
      done += count

  def take(self, indices: np.ndarray) -> np.ndarray:
    """Returns some rows, float32 [m, d].

    Args:
      indices: int64 [m], in any order, with or without repetition.

    Raises:
      IndexError: An index does not lie in 0..N - 1.
    """
    indices = np.asarray(indices, np.int64)
    if len(indices) and not (
      indices.min() >= 0 and indices.max() < self.shape[0]
    ):
      raise IndexError(f"rows must lie in 0..{self.shape[0] - 1}")
    out = np.empty((len(indices), self.shape[1]), np.float32)
    order = np.argsort(indices, kind="stable")
    cuts = np.searchsorted(indices[order], self._starts)
    for shard, members in zip(
      self._shards, np.split(order, cuts[1:]), strict=True
    ):
      if len(members):
        out[members] = self._take(shard, indices[members] - shard.start)
    return out

  def _take(self, shard: Shard, rows: np.ndarray) -> np.ndarray:
    """Returns sorted rows of one shard, [m, d]."""
    path = self._folder.path(shard.file)
    d = self.shape[1]
    row_bytes = d * self.dtype.itemsize
    if self._folder.is_local:
      # Mapped pages count as memory, so only a window is mapped at a time.
      step = max(_WINDOW_BYTES // row_bytes, 1)
      parts = []
      for first in range(0, shard.rows, step):
        begin, end = np.searchsorted(rows, (first, first + step))
        if begin < end:
          shape = (min(step, shard.rows - first), d)
          offset = shard.offset + first * row_bytes
          window = np.memmap(path, self.dtype, "r", offset, shape)
          parts.append(window[rows[begin:end] - first])
      return np.concatenate(parts)
    starts = [shard.offset + int(row) * row_bytes for row in rows]
    ends = [start + row_bytes for start in starts]
    parts = self._folder.fs.cat_ranges([path] * len(rows), starts, ends)
    return np.frombuffer(b"".join(parts), self.dtype).reshape(-1, d)

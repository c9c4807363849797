"""The feature bank: the features of the whole pool on disk, row i = sample i.

A folder, local or in a bucket (fsspec), of `.npy` shards, which every tool
reads, and `bank.json`, written last: the rows, size and sha256 of every shard,
and the digests of encoder and pool. Until then each finished shard has a small
JSON fragment, written after it: a killed build goes on behind the shards that
have one.

Opening compares the size of every shard, which costs one listing; `verify`
reads everything and compares checksums. A bank holds finite numbers only:
others are refused when it is made.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations import local
import numpy as np
import tqdm

from ecos_jax import errors
from ecos_jax import workdir
from ecos_jax.data import pools
from ecos_jax.encoders import registry

MANIFEST = "bank.json"
_VERSION = 1
_DTYPES = ("float16", "float32")
_CHECK_BYTES = 16 << 20
_WINDOW_BYTES = 64 << 20
_ALIGNMENT = 64


class BankError(errors.EcosError):
  """A feature bank that cannot be read or made."""


class Shard(NamedTuple):
  """Rows [start, start + rows) in one file of `size` bytes.

  `offset` is where the numbers begin.
  """

  file: str
  start: int
  rows: int
  offset: int
  size: int
  sha256: str


class _Folder:
  """A folder on any file system; files appear whole or not at all."""

  def __init__(self, path: Path | str):
    self.fs, self.root = fsspec.core.url_to_fs(str(path))
    self.name = str(path)
    self.is_local = isinstance(self.fs, local.LocalFileSystem)

  def path(self, file: str) -> str:
    return f"{self.root.rstrip('/')}/{file}"

  def make(self) -> None:
    self.fs.makedirs(self.root, exist_ok=True)

  def sizes(self) -> dict[str, int]:
    """Returns the bytes of every file, by name."""
    try:
      entries = self.fs.ls(self.root, detail=True, refresh=True)
    except (FileNotFoundError, NotADirectoryError):
      return {}
    return {
      entry["name"].rpartition("/")[2]: entry["size"] for entry in entries
    }

  def write(self, file: str, data: bytes) -> None:
    if self.is_local:
      workdir.write_atomically(Path(self.path(file)), data)
    else:
      # Object stores show an object once it is complete.
      self.fs.pipe_file(self.path(file), data)

  def read_json(self, file: str) -> dict[str, Any]:
    try:
      return json.loads(self.fs.cat_file(self.path(file)))
    except ValueError:
      raise BankError(
        f"{self.path(file)} is damaged: delete it, and build the bank again"
      ) from None

  def read_into(self, file: str, offset: int, view: memoryview) -> None:
    """Fills `view` from a file.

    Raises:
      BankError: The file is shorter.
    """
    with self.fs.open(self.path(file), "rb") as stream:
      stream.seek(offset)
      done = 0
      while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
          raise BankError(f"{self.path(file)} is truncated")
        done += count

  def sha256(self, file: str) -> str:
    sha = hashlib.sha256()
    with self.fs.open(self.path(file), "rb") as stream:
      while data := stream.read(_CHECK_BYTES):
        sha.update(data)
    return sha.hexdigest()


def _aligned(rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
  """Returns an array that JAX can use without a copy on CPU."""
  size = rows * columns * dtype.itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  skip = -memory.ctypes.data % _ALIGNMENT
  return memory[skip : skip + size].view(dtype).reshape(rows, columns)


def _bytes(array: np.ndarray) -> memoryview:
  return array.reshape(-1).view(np.uint8).data


def _not_finite(features: np.ndarray) -> np.ndarray:
  """Returns the first few rows that hold NaN or infinite values."""
  return np.flatnonzero(~np.isfinite(features).all(axis=1))[:5]


class FeatureBank:
  """An open bank; all reads are checked for length, none for checksums.

  Attributes:
    shape: (N, d).
    dtype: float16 or float32.
    encoder: Digest of the encoder.
    pool: Digest of the pool.
    digest: sha256 (hex) of what it holds: rows, shards and the digests above.
  """

  def __init__(self, folder: _Folder, manifest: dict[str, Any]):
    """Use `open`, `build` or `from_npy`."""
    self._folder = folder
    self._shards = [Shard(**shard) for shard in manifest["shards"]]
    self._starts = np.array([shard.start for shard in self._shards])
    self.shape: tuple[int, int] = (manifest["rows"], manifest["dimension"])
    self.dtype = np.dtype(manifest["dtype"])
    self.encoder: str = manifest["encoder"]
    self.pool: str = manifest["pool"]
    content = json.dumps(manifest, sort_keys=True).encode()
    self.digest: str = workdir.digest(content)

  @classmethod
  def open(cls, path: Path | str) -> "FeatureBank":
    """Returns the bank in a folder, after a check of all sizes.

    Args:
      path: A folder, or a URL that fsspec knows.

    Raises:
      BankError: There is none, it is damaged, a shard is missing or has
        another size, or there is a shard that is not of this bank.
    """
    folder = _Folder(path)
    sizes = folder.sizes()
    if MANIFEST not in sizes:
      raise BankError(
        f"{path} holds no finished feature bank ({MANIFEST} is missing)"
      )
    manifest = folder.read_json(MANIFEST)
    if manifest.get("version") != _VERSION:
      raise BankError(
        f"{path} is a feature bank of version {manifest.get('version')}, this "
        f"program reads version {_VERSION}"
      )
    try:
      bank = cls(folder, manifest)
    except (KeyError, TypeError):
      raise BankError(
        f"{folder.path(MANIFEST)} is damaged: delete {path}, and build the "
        "bank again"
      ) from None
    for shard in bank._shards:
      if sizes.get(shard.file) != shard.size:
        state = (
          f"has {sizes[shard.file]} bytes instead of {shard.size}"
          if shard.file in sizes
          else "is missing"
        )
        raise BankError(
          f"{folder.path(shard.file)} {state}: delete {path}, and build the "
          "bank again"
        )
    listed = {shard.file for shard in bank._shards}
    foreign = sorted(f for f in sizes if f.endswith(".npy") and f not in listed)
    if foreign:
      raise BankError(
        f"{folder.path(foreign[0])} does not belong to the feature bank beside "
        "it: move it elsewhere"
      )
    return bank

  def verify(self) -> None:
    """Reads every shard and compares checksums.

    Raises:
      BankError: A shard was altered.
    """
    for shard in tqdm.tqdm(
      self._shards, desc="checking the bank", unit=" shards", disable=None
    ):
      if self._folder.sha256(shard.file) != shard.sha256:
        raise BankError(
          f"{self._folder.path(shard.file)} was altered since it was written: "
          f"delete {self._folder.name}, and build the bank again"
        )

  def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, features [<= rows, d]) in order.

    A thread reads the next block meanwhile. There are two buffers: a block is
    valid until the next one is asked for.

    Args:
      rows: Rows of a block; the last may have fewer.
    """
    n, d = self.shape
    rows = min(rows, n)
    buffers = [_aligned(rows, d, self.dtype) for _ in range(2)]

    def read(start: int) -> np.ndarray:
      block = buffers[start // rows % 2][: n - start]
      self._read(start, block)
      return block

    with futures.ThreadPoolExecutor(1) as reader:
      following = reader.submit(read, 0)
      for start in range(0, n, rows):
        block = following.result()
        if start + rows < n:
          following = reader.submit(read, start + rows)
        yield start, block

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
        _bytes(out[done : done + count]),
      )
      done += count

  def take(self, indices: np.ndarray) -> np.ndarray:
    """Returns the features of some samples, float32 [m, d].

    Args:
      indices: [m] rows in any order.
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
      # Mapped pages count as memory, so only a part is mapped at a time.
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


def _shard_file(number: int) -> str:
  return f"shard-{number:06d}.npy"


def _fragment_file(number: int) -> str:
  return f"shard-{number:06d}.json"


def _write_manifest(
  folder: _Folder, identity: dict[str, Any], shards: Sequence[Shard]
) -> FeatureBank:
  manifest = identity | {"shards": [shard._asdict() for shard in shards]}
  folder.write(MANIFEST, json.dumps(manifest, indent=2).encode())
  return FeatureBank.open(folder.name)


def _check_identity(
  folder: _Folder, found: dict[str, Any], identity: dict[str, Any]
) -> None:
  for name, wanted in identity.items():
    if found.get(name) != wanted:
      raise BankError(
        f"{folder.name} holds a feature bank made otherwise: {name} was "
        f"{found.get(name)}, now is {wanted}; delete it, or take another folder"
      )


def _write_shard(
  folder: _Folder,
  identity: dict[str, Any],
  number: int,
  start: int,
  features: np.ndarray,
) -> None:
  bad = _not_finite(features)
  if len(bad):
    raise BankError(
      f"the features of samples {', '.join(map(str, start + bad))} are not "
      f"finite in {features.dtype}: look at these images, or set "
      "--config.bank.dtype=float32"
    )
  file = io.BytesIO()
  np.lib.format.write_array(file, features, allow_pickle=False)
  data = file.getvalue()
  shard = Shard(
    _shard_file(number),
    start,
    len(features),
    len(data) - features.nbytes,
    len(data),
    workdir.digest(data),
  )
  folder.write(shard.file, data)
  fragment = {"identity": identity, "shard": shard._asdict()}
  folder.write(_fragment_file(number), json.dumps(fragment).encode())


def _finished(
  folder: _Folder, identity: dict[str, Any], ranges: Sequence[range]
) -> list[bool]:
  """Returns which shards an interrupted build left complete."""
  sizes = folder.sizes()
  done = []
  for number, rows in enumerate(ranges):
    complete = False
    if _fragment_file(number) in sizes:
      fragment = folder.read_json(_fragment_file(number))
      _check_identity(folder, fragment["identity"], identity)
      shard = Shard(**fragment["shard"])
      complete = (shard.start, shard.rows) == (rows.start, len(rows)) and (
        sizes.get(shard.file) == shard.size
      )
    done.append(complete)
  return done


def build(
  path: Path | str,
  pool: pools.Pool,
  encoder: registry.Encoder,
  *,
  dtype: str = "float16",
  shard_rows: int = 65536,
  batch_size: int = 1024,
) -> FeatureBank:
  """Returns the bank of a pool, encoding what is not there yet.

  A thread reads the images of the next batch and another one writes the last
  shard while the device encodes.

  Args:
    path: A folder, or a URL that fsspec knows.
    pool: The images.
    encoder: Gives [b, d] float32 for a batch of images.
    dtype: 'float16' or 'float32', what the bank holds.
    shard_rows: Rows of a shard.
    batch_size: Images a call of the encoder.

  Raises:
    BankError: The pool is empty, the folder holds another bank, or features
      are not finite.
  """
  if dtype not in _DTYPES:
    raise BankError(
      f"--config.bank.dtype={dtype}: it must be one of {', '.join(_DTYPES)}"
    )
  n = len(pool)
  if not n:
    raise BankError("the pool is empty: nothing to encode")
  folder = _Folder(path)
  folder.make()
  identity = {
    "version": _VERSION,
    "rows": n,
    "dimension": encoder.dimension,
    "dtype": dtype,
    "encoder": encoder.digest,
    "pool": pool.digest,
  }
  if MANIFEST in folder.sizes():
    _check_identity(folder, folder.read_json(MANIFEST), identity)
    return FeatureBank.open(path)

  ranges = [range(i, min(i + shard_rows, n)) for i in range(0, n, shard_rows)]
  done = _finished(folder, identity, ranges)
  todo = [number for number, complete in enumerate(done) if not complete]
  batches = [
    (number, start, min(start + batch_size, ranges[number].stop))
    for number in todo
    for start in ranges[number][::batch_size]
  ]

  def read(batch: tuple[int, int, int]) -> np.ndarray:
    return pool.images(np.arange(batch[1], batch[2]), encoder.image_size)

  progress = tqdm.tqdm(
    total=n,
    initial=n - sum(len(ranges[number]) for number in todo),
    desc="encoding",
    unit=" images",
    disable=None,
  )
  # Left last: a write under way ends before an error goes up.
  with (
    progress,
    futures.ThreadPoolExecutor(1) as reader,
    futures.ThreadPoolExecutor(1) as writer,
  ):
    writing = writer.submit(lambda: None)
    following = reader.submit(read, batches[0]) if batches else None
    features = np.zeros((0, encoder.dimension), dtype)
    for i, (number, start, stop) in enumerate(batches):
      rows = ranges[number]
      if start == rows.start:
        features = np.empty((len(rows), encoder.dimension), dtype)
      assert following is not None
      images = following.result()
      if i + 1 < len(batches):
        following = reader.submit(read, batches[i + 1])
      encoded = registry.encode(encoder, images, batch_size)
      # What float16 cannot hold becomes infinite, and is refused by name.
      with np.errstate(over="ignore"):
        features[start - rows.start : stop - rows.start] = encoded
      progress.update(stop - start)
      if stop == rows.stop:
        writing.result()
        writing = writer.submit(
          _write_shard, folder, identity, number, rows.start, features
        )
    writing.result()

  fragments = [_fragment_file(number) for number in range(len(ranges))]
  shards = [Shard(**folder.read_json(name)["shard"]) for name in fragments]
  bank = _write_manifest(folder, identity, shards)
  with contextlib.suppress(OSError):
    folder.fs.rm([folder.path(name) for name in fragments])
  return bank


def _adopt(folder: _Folder, file: str, size: int, start: int):
  """Returns the shard of an existing .npy file, its d and its dtype."""
  path = folder.path(file)
  try:
    with folder.fs.open(path, "rb") as stream:
      version = np.lib.format.read_magic(stream)
      read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
      )
      shape, fortran, dtype = read_header(stream)
      offset = stream.tell()
  except ValueError:
    raise BankError(f"{path} is no .npy file of numbers") from None
  if len(shape) != 2 or fortran or dtype.name not in _DTYPES:
    raise BankError(
      f"{path} must hold a C-ordered [rows, d] array of float16 or float32, "
      f"got {dtype} {list(shape)}"
    )
  rows, d = shape
  if size != offset + rows * d * dtype.itemsize:
    raise BankError(f"{path} is truncated")
  count = max(_CHECK_BYTES // max(d * dtype.itemsize, 1), 1)
  for first in range(0, rows, count):
    block = np.empty((min(count, rows - first), d), dtype)
    folder.read_into(file, offset + first * d * dtype.itemsize, _bytes(block))
    bad = _not_finite(block)
    if len(bad):
      raise BankError(
        f"{path}: rows {', '.join(map(str, first + bad))} hold NaN or infinite "
        "values"
      )
  sha256 = folder.sha256(file)
  return Shard(file, start, rows, offset, size, sha256), d, dtype.name


def from_npy(path: Path | str, *, encoder: str, pool: str) -> FeatureBank:
  """Returns the bank of existing `.npy` files, by a manifest beside them.

  Nothing is copied; everything is read once, for checksums and finiteness.

  Args:
    path: Folder or URL with `.npy` files of [rows, d] float16 or float32, all
      alike; in the order of their names they are the pool's rows.
    encoder: Digest of the encoder they come from.
    pool: Digest of the pool they belong to.

  Raises:
    BankError: There are none, they do not fit together, or some row is not
      finite.
  """
  folder = _Folder(path)
  sizes = folder.sizes()
  files = sorted(file for file in sizes if file.endswith(".npy"))
  shards: list[Shard] = []
  kind = None
  rows = 0
  for file in tqdm.tqdm(files, desc="reading", unit=" files", disable=None):
    shard, *found = _adopt(folder, file, sizes[file], rows)
    if kind is not None and found != kind:
      raise BankError(
        f"{folder.path(file)} holds rows of {found[0]} x {found[1]}, the files "
        f"before it {kind[0]} x {kind[1]}"
      )
    kind = found
    shards.append(shard)
    rows += shard.rows
  if kind is None or not rows:
    raise BankError(f"{path} holds no .npy files with rows")
  identity = {
    "version": _VERSION,
    "rows": rows,
    "dimension": kind[0],
    "dtype": kind[1],
    "encoder": encoder,
    "pool": pool,
  }
  return _write_manifest(folder, identity, shards)

"""How rows reach the devices: in chunks, and on each device block by block.

Chunks have few distinct static shapes and a dynamic number of valid rows: any n
runs at once, and padding is not computed. They share memory with the features
where they can: copying costs as much as a small product.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax.clustering import kernels

MEMORY_BUDGET = 256 << 20
# Scores that stay in a CPU's cache between the product and the argmax.
_CPU_SCORE_BYTES = 2 << 20
# Chunks that the allocator recycles: fresh pages cost more than the copy.
_CPU_CHUNK_BYTES = 16 << 20
# Where memory must begin for XLA to use it as it lies, on CPU.
_CPU_ALIGNMENT = 64
# A kernel keeps no scores, but wants 128 rows for each of 132 processors.
_HOPPER_ROWS = 16384
_DATA = jax.sharding.PartitionSpec("data")
_Part = TypeVar("_Part")


class Rows(Protocol):
  """Features that need not fit in memory; a feature bank is one.

  A block stays valid until the next but one is asked for; then its memory is
  reused.
  """

  @property
  def shape(self) -> tuple[int, int]:
    """(n, d)."""

  @property
  def dtype(self) -> np.dtype:
    """The type of the numbers in `blocks`."""

  def blocks(
    self, rows: int, part: slice = slice(None)
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, [<= rows, d]) in order, of each block only a part.

    The first row is that of the whole block; a part that lies behind the last
    row is empty, and comes all the same.
    """

  def take(self, indices: np.ndarray) -> np.ndarray:
    """Returns the rows at `indices`, float32 [m, d]."""


class Plan(NamedTuple):
  """Static shapes: rows of a chunk over all devices, of a block on one."""

  chunk: int
  block: int


def single_device_mesh() -> jax.sharding.Mesh:
  """Returns the mesh of this process's first device."""
  return jax.make_mesh(
    (1,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.local_devices()[:1],
  )


def _power_of_two(value: int) -> int:
  """Returns the largest power of two that is no larger; at least 1."""
  return 1 << max(value.bit_length() - 1, 0)


def plan(
  shape: tuple[int, int],
  k: int,
  mesh: jax.sharding.Mesh,
  memory_budget: int = MEMORY_BUDGET,
  *,
  in_memory: bool = False,
) -> Plan:
  """Returns the shapes that suit [n, d] features and k centroids.

  Different n share compiled code: a single chunk is rounded up to eighths of a
  power of two, several are whole blocks. Of these sizes it is the one that
  leaves devices idle least while the last chunk is computed.

  Args:
    shape: (n, d).
    k: Number of centroids.
    mesh: Devices to share the rows of a chunk.
    memory_budget: Bytes for a chunk and for the scores of a block, together.
    in_memory: Whether the rows are: then chunks need not be small enough to be
      recycled, and none is longer than the features where there are several.
  """
  n, d = shape
  share = memory_budget // 4
  block = _power_of_two(share // (4 * k))
  recycled = share
  if mesh.devices.flat[0].platform == "cpu":
    recycled = min(share, _CPU_CHUNK_BYTES)
    cached = _power_of_two(_CPU_SCORE_BYTES // (4 * k))
    block = min(block, max(cached, 256), 8192)
  elif kernels.hopper(mesh.abstract_mesh):
    block = max(block, _HOPPER_ROWS)
  rows = max(-(-n // mesh.size), 1)
  most = _power_of_two(recycled // (4 * d))
  if rows <= most:
    step = max(_power_of_two(rows) // 8, 1)
    rows = -(-rows // step) * step
  else:
    if in_memory:
      most = _power_of_two(min(share // (4 * d), n // mesh.size))

    def computed(rows: int) -> int:
      whole, rest = divmod(n, rows * mesh.size)
      return whole * rows + min(rest, rows)

    rows = min(range(most, most // 2, -min(block, most)), key=computed)
  return Plan(rows * mesh.size, min(block, rows))


def _own_rows(
  sharding: jax.sharding.NamedSharding, shape: tuple[int, int]
) -> slice:
  """Returns which rows of a sharded array this process holds: contiguous."""
  indices = sharding.addressable_devices_indices_map(shape).values()
  spans = [index[0].indices(shape[0]) for index in indices if index]
  return slice(min(s[0] for s in spans), max(s[1] for s in spans))


def _sharded(
  own: np.ndarray,
  first: int,
  rows: int,
  sharding: jax.sharding.NamedSharding,
) -> jax.Array:
  """Returns the array of `rows` rows whose part from `first` on is `own`."""

  def piece(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    start, stop, _ = index[0].indices(rows)
    return own[start - first : stop - first]

  shape = rows, own.shape[1]
  return jax.make_array_from_callback(shape, sharding, piece)


def read(
  features: np.ndarray | Rows, rows: int, mesh: jax.sharding.Mesh
) -> Iterator[tuple[int, int, jax.Array]]:
  """Yields (first row, valid rows, chunk [rows, d] sharded over 'data').

  Each process reads no more than its own rows of a chunk. A chunk may share
  memory with the block it came from, so what is computed from it must be ready
  before the next but one is asked for.
  """
  n, d = features.shape
  sharding = jax.sharding.NamedSharding(mesh, _DATA)
  own = _own_rows(sharding, (rows, d))
  if isinstance(features, np.ndarray):
    blocks = (
      (start, features[start + own.start : start + own.stop])
      for start in range(0, n, rows)
    )
  else:
    blocks = features.blocks(rows, own)
  for start, block in blocks:
    missing = own.stop - own.start - len(block)
    if missing:
      block = np.pad(block, ((0, missing), (0, 0)))
    yield (
      start,
      min(rows, n - start),
      _sharded(block, own.start, rows, sharding),
    )


def one_ahead(parts: Iterable[_Part]) -> Iterator[_Part]:
  """Yields the parts, each after the next one was asked for.

  So a device computes the next, dispatched by then, while one is fetched.
  """
  under_way = None
  for part in parts:
    if under_way is not None:
      yield under_way
    under_way = part
  if under_way is not None:
    yield under_way


def offset(
  features: np.ndarray, rows: int, mesh: jax.sharding.Mesh
) -> int | None:
  """Returns how many numbers too late rows begin for chunks to share memory.

  None if they cannot share it anyhow.
  """
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  # Processes must agree on it, and their arrays may begin elsewhere.
  if not features.flags.c_contiguous or not on_cpu or mesh.is_multi_process:
    return None
  d = features.shape[1]
  numbers, rest = divmod(
    features.ctypes.data % _CPU_ALIGNMENT, features.itemsize
  )
  together = rows // mesh.size * d * features.itemsize % _CPU_ALIGNMENT
  return None if rest or together or numbers > d else numbers


def read_shared(
  features: np.ndarray, rows: int, mesh: jax.sharding.Mesh, offset: int
) -> Iterator[tuple[int, int, int, jax.Array]]:
  """Yields (first row, fresh from, valid rows, chunk) of contiguous features.

  The last of several chunks overlaps the one before, since padding would copy
  it: it is fresh from a later row. With an `offset`, each device has one row
  more, [rows + mesh.size, d] in all, and the rows begin that many numbers
  later, so that the memory is shared; the first chunk and the last are copied.
  """
  n, d = features.shape
  sharding = jax.sharding.NamedSharding(mesh, _DATA)
  own = rows // mesh.size + (offset > 0)
  flat = features.reshape(-1)
  for fresh in range(0, n, rows):
    start = max(min(fresh, n - rows), 0)

    def piece(index, start=start):
      device = (index[0].start or 0) // own
      first = (start + device * (rows // mesh.size)) * d - offset
      part = flat[max(first, 0) : first + own * d]
      if len(part) < own * d:
        before = max(-first, 0)
        part = np.pad(part, (before, own * d - before - len(part)))
      return part.reshape(own, d)

    shape = own * mesh.size, d
    chunk = jax.make_array_from_callback(shape, sharding, piece)
    yield start, fresh - start, min(rows, n - start), chunk


def scan_blocks(
  body: Callable[[Any, jax.Array, jax.Array, jax.Array], Any],
  carry: Any,
  chunk: jax.Array,
  valid: jax.Array,
  block: int,
  offset: jax.Array | None = None,
  first: jax.typing.ArrayLike = 0,
) -> Any:
  """Returns the carry after `body` has seen the valid rows of a local chunk.

  For use inside `shard_map` over 'data'. The last block overlaps the one before
  where the chunk is not a whole number of blocks; `fresh` tells which rows are
  valid and were not seen.

  Args:
    body: (carry, first local row, features float32 [block, d], fresh bool
      [block]) -> carry.
    carry: Arrays, the same on all devices.
    chunk: [rows, d], this device's part.
    valid: int32, valid rows of the whole chunk.
    block: Rows of a block.
    offset: int32, of a chunk of `read_shared`; None where it is 0.
    first: int32, rows of the whole chunk that are not fresh.
  """
  d = chunk.shape[1]
  rows = len(chunk) - (offset is not None)
  before = jax.lax.axis_index("data") * rows
  first, valid = (jnp.clip(i - before, 0, rows) for i in (first, valid))

  def step(i, carry):
    start = jnp.minimum(i * block, rows - block)
    if offset is None:
      features = jax.lax.dynamic_slice_in_dim(chunk, start, block)
    else:
      features = jax.lax.dynamic_slice_in_dim(
        chunk.reshape(-1), start * d + offset, block * d
      ).reshape(block, d)
    row = start + jax.lax.iota(jnp.int32, block)
    fresh = (row >= jnp.maximum(i * block, first)) & (row < valid)
    return body(carry, start, features.astype(jnp.float32), fresh)

  carry = jax.lax.pcast(carry, "data", to="varying")
  return jax.lax.fori_loop(first // block, -(-valid // block), step, carry)

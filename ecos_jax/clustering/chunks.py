"""How rows reach the devices: in chunks, and on each device block by block.

Chunks have few distinct static shapes and a dynamic number of valid rows: any n
runs without compiling anew, and padding is not computed. On CPU, chunks of
aligned features share their memory: a copy costs as much as a small product.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax import errors
from ecos_jax.clustering import kernels

MEMORY_BUDGET = 256 << 20
# Scores that stay in a CPU's cache between the product and the argmax.
_CPU_SCORE_BYTES = 2 << 20
# Chunks that the allocator recycles: fresh pages cost more than the copy.
_CPU_CHUNK_BYTES = 16 << 20
# XLA uses memory without a copy, on CPU, if it begins at a multiple of this.
_CPU_ALIGNMENT = 64
# On Hopper GPUs a kernel keeps no scores, so that a chunk is one block: of
# whole rounds of 128 rows for each of 128 processors or so, and all rows that
# stay on the device, up to a limit.
_HOPPER_ROWS = 16384
_HOPPER_CHUNK_BYTES = 2 << 30
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


# [n, d], in memory or not.
Features = np.ndarray | Rows


def checked(features: Any, name: str = "features") -> Features:
  """Returns features [n, d] in memory as a numpy array, others as they are.

  Args:
    features: A numpy or JAX array, or `Rows`.
    name: What to call them in an error.

  Raises:
    EcosError: They have another shape or type.
  """
  if hasattr(features, "blocks"):
    return features
  array = np.asarray(features)
  floats = array.dtype.name in ("float16", "bfloat16", "float32")
  if array.ndim != 2 or 0 in array.shape or not floats:
    raise errors.EcosError(
      f"`{name}` must be float16 or float32 [n, d], got {array.dtype} "
      f"{list(array.shape)}"
    )
  return array


def take(features: Features, rows: np.ndarray) -> np.ndarray:
  """Returns some rows, float32 [m, d]."""
  if isinstance(features, np.ndarray):
    return features[rows].astype(np.float32)
  return features.take(rows)


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


def _round_down_to_power_of_two(value: int) -> int:
  """Returns at least 1."""
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
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  whole_chunks = not on_cpu and kernels.assignment(mesh.abstract_mesh) != "xla"
  block = _round_down_to_power_of_two(share // (4 * k))
  recycled = share
  if on_cpu:
    recycled = min(share, _CPU_CHUNK_BYTES)
    cached = _round_down_to_power_of_two(_CPU_SCORE_BYTES // (4 * k))
    block = min(block, max(cached, 256), 8192)
  elif whole_chunks:
    block = _HOPPER_ROWS
    share = memory_budget
    if in_memory:
      share = max(share, _HOPPER_CHUNK_BYTES)
    recycled = share
  rows = max(-(-n // mesh.size), 1)
  most = _round_down_to_power_of_two(recycled // (4 * d))
  if rows <= most:
    step = max(_round_down_to_power_of_two(rows) // 8, 1)
    rows = -(-rows // step) * step
  else:
    if in_memory:
      most = _round_down_to_power_of_two(min(share // (4 * d), n // mesh.size))

    def computed(rows: int) -> int:
      whole, rest = divmod(n, rows * mesh.size)
      return whole * rows + min(rest, rows)

    rows = min(range(most, most // 2, -min(block, most)), key=computed)
  return Plan(rows * mesh.size, rows if whole_chunks else min(block, rows))


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
  features: Features, rows: int, mesh: jax.sharding.Mesh
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


def shares_memory(features: Features, mesh: jax.sharding.Mesh) -> bool:
  """Returns whether chunks on the devices of a mesh are not copies."""
  return (
    isinstance(features, np.ndarray)
    and features.flags.c_contiguous
    and features.ctypes.data % _CPU_ALIGNMENT == 0
    and mesh.devices.flat[0].platform == "cpu"
    # Processes must agree, and the arrays of others may begin elsewhere.
    and not mesh.is_multi_process
  )


def scan_blocks(
  body: Callable[[Any, jax.Array, jax.Array, jax.Array], Any],
  carry: Any,
  chunk: jax.Array,
  valid: jax.Array,
  block: int,
) -> Any:
  """Returns the carry after `body` has seen the valid rows of a local chunk.

  For use inside `shard_map` over 'data'. The last block overlaps the one before
  where the chunk is not a whole number of blocks; `fresh` tells which rows are
  valid and were not seen.

  Args:
    body: (carry, first local row, features [block, d] of the chunk's type,
      fresh bool [block]) -> carry.
    carry: Arrays, the same on all devices.
    chunk: [rows, d], this device's part.
    valid: int32, valid rows of the whole chunk.
    block: Rows of a block.
  """
  rows = len(chunk)
  valid = jnp.clip(valid - jax.lax.axis_index("data") * rows, 0, rows)

  def step(i, carry):
    start = jnp.minimum(i * block, rows - block)
    features = jax.lax.dynamic_slice_in_dim(chunk, start, block)
    row = start + jax.lax.iota(jnp.int32, block)
    fresh = (row >= i * block) & (row < valid)
    return body(carry, start, features, fresh)

  carry = jax.lax.pcast(carry, "data", to="varying")
  on_hopper = kernels.assignment(jax.sharding.get_abstract_mesh()) != "xla"
  if on_hopper and block == rows:
    # A loop would make the host wait for the device, to know when it ends.
    return step(0, carry)
  return jax.lax.fori_loop(0, -(-valid // block), step, carry)

"""Cuts rows into chunks for the devices, and chunks into blocks on each device.

Chunks have one of a few static shapes and a dynamic number of valid rows. So
few n need a new compilation, and blocks of padding are skipped. On CPU,
chunks of aligned features share their memory: a copy costs as much as a small
matrix product.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax import errors
from ecos_jax.clustering import kernels

MEMORY_BUDGET = 256 << 20
# Bytes of the scores of a block: they stay in a CPU's cache for the argmax.
_CPU_SCORE_BYTES = 2 << 20
# Size of a chunk that is a copy: the allocator reuses memory of this size, and
# new pages are slow.
_CPU_CHUNK_BYTES = 16 << 20
# On CPU, XLA uses memory without a copy if it begins at a multiple of this.
_CPU_ALIGNMENT = 64
# On Hopper GPUs the kernel keeps no scores, so a chunk is one block, large
# enough for 128 rows on each of 132 processors. Rows that stay on the device
# are one chunk, up to this size.
_HOPPER_ROWS = 16384
_HOPPER_CHUNK_BYTES = 2 << 30
_ROWS = jax.P("data")
_Part = TypeVar("_Part")


class Rows(Protocol):
  """Features that need not fit in memory, such as a feature bank.

  A block is valid until the next but one is asked for; then its memory is
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
    """Yields (first row of the block, a part of the block) in order.

    Args:
      rows: Rows of a block; the last may have fewer.
      part: Which rows of each block to yield; the array is empty where the
        block has none of them.
    """

  def take(self, indices: np.ndarray) -> np.ndarray:
    """Returns the rows at `indices`, float32 [m, d]."""


# [n, d] in memory or elsewhere.
Features = np.ndarray | Rows


def checked(features: Any) -> Features:
  """Returns features [n, d] in memory as a numpy array, others as they are.

  Args:
    features: A numpy or JAX array, or `Rows`.

  Raises:
    EcosError: They have another shape or type.
  """
  if hasattr(features, "blocks"):
    return features
  array = np.asarray(features)
  floats = array.dtype.name in ("float16", "bfloat16", "float32")
  if array.ndim != 2 or 0 in array.shape or not floats:
    raise errors.EcosError(
      f"`features` must be float16 or float32 [n, d], got {array.dtype} "
      f"{list(array.shape)}"
    )
  return array


def take(features: Features, rows: np.ndarray) -> np.ndarray:
  """Returns some rows, float32 [m, d]."""
  if isinstance(features, np.ndarray):
    return features[rows].astype(np.float32, copy=False)
  return features.take(rows)


def blocks(
  features: Features, rows: int, part: slice = slice(None)
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields what `Rows.blocks` does, of features in memory as well."""
  if not isinstance(features, np.ndarray):
    return features.blocks(rows, part)
  return (
    (start, features[start : start + rows][part])
    for start in range(0, len(features), rows)
  )


class Plan(NamedTuple):
  """Static shapes.

  Attributes:
    chunk: Rows of a chunk, over all devices.
    block: Rows of a block, on one device.
  """

  chunk: int
  block: int


def single_device_mesh() -> jax.sharding.Mesh:
  """Returns a mesh with the first device of this process."""
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
  """Returns the shapes for features [n, d] and k centroids.

  Many n share one shape, and so one compiled program. If one chunk holds all
  rows, their number is rounded up to a multiple of an eighth of a power of two.
  Otherwise a chunk is a whole number of blocks, chosen so that the devices idle
  least in the last chunk.

  Args:
    shape: (n, d).
    k: Number of centroids.
    mesh: Devices to share the rows of a chunk.
    memory_budget: Bytes for a chunk and for the scores of a block, together.
    in_memory: Whether chunks share the memory of the features: then they may be
      larger, but not larger than the features.
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
  """Returns the rows of a sharded array that this process holds."""
  indices = sharding.addressable_devices_indices_map(shape).values()
  spans = [index[0].indices(shape[0]) for index in indices if index]
  return slice(min(s[0] for s in spans), max(s[1] for s in spans))


def read(
  features: Features, rows: int, mesh: jax.sharding.Mesh
) -> Iterator[tuple[int, int, jax.Array]]:
  """Yields (first row, valid rows, chunk [rows, d] sharded over 'data').

  Each process reads only its own rows of a chunk. A chunk may share memory with
  the block that it came from, so all that is computed from it must be ready
  before the next but one is asked for.
  """
  n, d = features.shape
  sharding = jax.sharding.NamedSharding(mesh, _ROWS)
  own = _own_rows(sharding, (rows, d))
  for start, block in blocks(features, rows, own):
    missing = own.stop - own.start - len(block)
    if missing:
      block = np.pad(block, ((0, missing), (0, 0)))
    chunk = jax.make_array_from_process_local_data(sharding, block, (rows, d))
    yield start, min(rows, n - start), chunk


def one_ahead(parts: Iterable[_Part]) -> Iterator[_Part]:
  """Yields the parts, each after the next one is dispatched.

  So the devices compute the next part while one is fetched.
  """
  under_way = None
  for part in parts:
    if under_way is not None:
      yield under_way
    under_way = part
  if under_way is not None:
    yield under_way


def shares_memory(features: Features, mesh: jax.sharding.Mesh) -> bool:
  """Returns whether chunks on the devices of a mesh need no copy."""
  return (
    isinstance(features, np.ndarray)
    and features.flags.c_contiguous
    and features.ctypes.data % _CPU_ALIGNMENT == 0
    and mesh.devices.flat[0].platform == "cpu"
    # Processes must agree, and another's array may be aligned otherwise.
    and not mesh.is_multi_process
  )


def scan_blocks(
  body: Callable[[Any, jax.Array, jax.Array, jax.Array], Any],
  carry: Any,
  chunk: jax.Array,
  valid: jax.Array,
  block: int,
) -> Any:
  """Returns the carry after `body` has seen all valid rows of a local chunk.

  For use inside `shard_map` over 'data'. If the chunk is not a whole number of
  blocks, the last block overlaps the one before. `fresh` marks the rows that
  are valid and were not in an earlier block.

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

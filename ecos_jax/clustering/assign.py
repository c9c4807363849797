"""Nearest centroids, as fast as the matrix product underneath.

The nearest centroid of x maximises x.c - |c|^2 / 2, so an assignment is a
matrix product and an argmax. The [n, k] scores would be far larger than the
features, so rows go through in blocks whose scores fit a cache (CPU) or a
memory budget (accelerators). Three things keep it near the rate of the product:

* Chunks of rows have few distinct static shapes and a dynamic number of valid
  rows: any n runs at once, and padding is not computed.
* The argmax goes over groups of columns first: `jnp.argmax` costs more than the
  product on CPU.
* Float16 is converted block by block, in cache.

Products are float32 at precision "highest", since the cloud and the client must
agree on the nearest centroid. Equal scores go to the lowest index.
"""

from collections.abc import Callable, Iterator
import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax.clustering import kernels

_MEMORY_BUDGET = 256 << 20
# Scores that stay in a CPU's cache between the product and the argmax.
_CPU_SCORE_BYTES = 2 << 20
# Chunks that the allocator recycles: fresh pages cost more than the copy.
_CPU_CHUNK_BYTES = 16 << 20
# A kernel keeps no scores, but wants 128 rows for each of 132 processors.
_HOPPER_ROWS = 16384
_DATA = jax.sharding.PartitionSpec("data")
_REPLICATED = jax.sharding.PartitionSpec()


class Assignment(NamedTuple):
  """The nearest centroid of each row.

  Attributes:
    labels: int32 [n].
    distances: float32 [n], squared Euclidean, by |x|^2 - 2 x.c + |c|^2: good to
      some 1e-6 |x|^2.
  """

  labels: jax.Array | np.ndarray
  distances: jax.Array | np.ndarray


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
  memory_budget: int = _MEMORY_BUDGET,
) -> Plan:
  """Returns the shapes that suit [n, d] features and k centroids.

  Chunk sizes are rounded up to eighths of a power of two, so that different n
  share compiled code.
  """
  n, d = shape
  share = memory_budget // 4
  block = _power_of_two(share // (4 * k))
  if mesh.devices.flat[0].platform == "cpu":
    share = min(share, _CPU_CHUNK_BYTES)
    cached = _power_of_two(_CPU_SCORE_BYTES // (4 * k))
    block = min(block, max(cached, 256), 8192)
  elif kernels.hopper(mesh.abstract_mesh):
    block = max(block, _HOPPER_ROWS)
  rows = max(-(-n // mesh.size), 1)
  pieces = -(-rows // _power_of_two(share // (4 * d)))
  rows = -(-rows // pieces)
  step = max(_power_of_two(rows) // 8, 1)
  rows = -(-rows // step) * step
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


def chunks(
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


def _group_width(k: int) -> int:
  """Returns a width near sqrt(k) that divides k, or nearly."""
  root = math.isqrt(k)
  widths = range(max(root // 2, 1), min(2 * root, k) + 1)
  return min(widths, key=lambda width: (-k % width, abs(width - root)))


def _reduce_pairs(scores: jax.Array, reducer) -> tuple[jax.Array, jax.Array]:
  indices = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  first = (jnp.float32(-jnp.inf), jnp.int32(0))
  return jax.lax.reduce((scores, indices), first, reducer, (1,))


def _without(scores: jax.Array, columns: jax.Array) -> jax.Array:
  """Returns the largest of each row outside one column, [n]."""
  every = jnp.arange(scores.shape[1])
  return jnp.max(jnp.where(every == columns[:, None], -jnp.inf, scores), axis=1)


def _top_two_cpu(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The largest of groups of columns first, which is vectorised, then inside.

  Reductions over (score, index) pairs are scalar code, so they run over the
  few groups, and over the few columns of the group that won.
  """

  def ordered(a, b):
    # XLA reduces in index order on CPU: the first of equals stays.
    later = b[0] > a[0]
    return jnp.where(later, b[0], a[0]), jnp.where(later, b[1], a[1])

  # Without the barriers XLA spoils the product to fuse the reductions.
  scores = jax.lax.optimization_barrier(scores)
  n, k = scores.shape
  width = _group_width(k)
  whole = k // width
  groups = jnp.max(scores[:, : whole * width].reshape(n, whole, width), axis=2)
  if k % width:
    # The last group overlaps the one before, which wins where they tie.
    last = jnp.max(scores[:, k - width :], axis=1, keepdims=True)
    groups = jnp.concatenate([groups, last], axis=1)
  groups = jax.lax.optimization_barrier(groups)
  best, group = _reduce_pairs(groups, ordered)
  starts = jnp.minimum(group * width, k - width)
  inside = jax.vmap(
    lambda row, start: jax.lax.dynamic_slice(row, (start,), (width,))
  )(scores, starts)
  inside = jax.lax.optimization_barrier(inside)
  _, column = _reduce_pairs(inside, ordered)
  second = jnp.maximum(_without(groups, group), _without(inside, column))
  return best, starts + column, second


def _top_two(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  def unordered(a, b):
    later = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
    return jnp.where(later, b[0], a[0]), jnp.where(later, b[1], a[1])

  best, labels = _reduce_pairs(scores, unordered)
  return best, labels, _without(scores, labels)


def top_two(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the largest of each row, its lowest index, and the runner-up.

  Args:
    scores: float32 [n, k] without NaN.

  Returns:
    float32 [n], int32 [n], and float32 [n]: no less than the largest in any
    other column, and hardly ever more; minus infinity if there is none.
  """
  return jax.lax.platform_dependent(scores, cpu=_top_two_cpu, default=_top_two)


def argmax(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the largest of each row and its lowest index, [n] and int32 [n].

  Args:
    scores: float32 [n, k] without NaN.
  """
  best, labels, _ = top_two(scores)
  return best, labels


def nearest(features: jax.Array, centroids: jax.Array) -> Assignment:
  """Returns the assignment of one block.

  On Hopper GPUs a kernel does it all; elsewhere scores [n, k] come in between,
  which XLA fuses away on TPU. For use inside jitted code, under the mesh that
  names the chip; `assign` cuts any number of rows into blocks.

  Args:
    features: [n, d] float32.
    centroids: [k, d] float32.
  """
  if kernels.hopper(jax.sharding.get_abstract_mesh()):
    # Imported for the chip alone: Pallas's interface is still moving.
    from ecos_jax.clustering.kernels import gpu

    scores, labels = gpu.nearest(features, centroids)
  else:
    products = jax.lax.dot_general(
      features,
      centroids,
      (((1,), (1,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST,
    )
    half_norms = jnp.sum(centroids * centroids, axis=1) / 2
    # The score is used too: TPU compilers narrow it to bfloat16 otherwise.
    scores, labels = argmax(products - half_norms)
  norms = jnp.sum(features * features, axis=1)
  return Assignment(labels, jnp.maximum(norms - 2 * scores, 0))


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
    body: (carry, first local row, features float32 [block, d], fresh bool
      [block]) -> carry.
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
    return body(carry, start, features.astype(jnp.float32), fresh)

  carry = jax.lax.pcast(carry, "data", to="varying")
  return jax.lax.fori_loop(0, -(-valid // block), step, carry)


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _assign_chunk(chunk, valid, centroids, *, mesh, block):
  def local(chunk, valid, centroids):
    def body(carry, start, features, fresh):
      del fresh
      update = functools.partial(
        jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0
      )
      return jax.tree.map(update, carry, nearest(features, centroids))

    rows = len(chunk)
    carry = Assignment(jnp.zeros(rows, jnp.int32), jnp.zeros(rows))
    return scan_blocks(body, carry, chunk, valid, block)

  assignment = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(_DATA, _REPLICATED, _REPLICATED),
    out_specs=_DATA,
  )(chunk, valid, centroids)
  if not mesh.is_multi_process:
    return assignment
  everywhere = jax.sharding.NamedSharding(mesh, _REPLICATED)
  return jax.lax.with_sharding_constraint(assignment, everywhere)


def stream(
  features: np.ndarray | Rows,
  centroids: jax.typing.ArrayLike,
  *,
  mesh: jax.sharding.Mesh | None = None,
  memory_budget: int = _MEMORY_BUDGET,
) -> Iterator[tuple[int, Assignment]]:
  """Yields (first row, assignment) of successive rows, as numpy arrays.

  Memory does not grow with the number of rows.

  Args:
    features: [n, d] float16, bfloat16 or float32, finite.
    centroids: [k, d] float32, finite.
    mesh: Devices to share the rows of a chunk; None for one.
    memory_budget: Bytes for a chunk and for the scores of a block, together.
  """
  mesh = mesh or single_device_mesh()
  centroids = jnp.asarray(centroids, jnp.float32)
  rows, block = plan(features.shape, len(centroids), mesh, memory_budget)
  under_way = None
  for start, valid, chunk in chunks(features, rows, mesh):
    found = _assign_chunk(chunk, valid, centroids, mesh=mesh, block=block)
    if under_way:
      yield _fetched(*under_way)
    under_way = start, valid, found
  if under_way:
    yield _fetched(*under_way)


def _fetched(start, valid, assignment) -> tuple[int, Assignment]:
  return start, Assignment(*(np.asarray(a)[:valid] for a in assignment))


def assign(
  features: jax.typing.ArrayLike,
  centroids: jax.typing.ArrayLike,
  *,
  mesh: jax.sharding.Mesh | None = None,
  memory_budget: int = _MEMORY_BUDGET,
) -> Assignment:
  """Returns the assignment of features in memory, as numpy arrays.

  Args:
    features: [n, d] float16, bfloat16 or float32, finite; n may be 0.
    centroids: [k, d] float32, finite.
    mesh: Devices to share the work; None for one.
    memory_budget: Bytes for a chunk and for the scores of a block, together.
  """
  features = np.asarray(features)
  labels = np.empty(len(features), np.int32)
  distances = np.empty(len(features), np.float32)
  for start, part in stream(
    features, centroids, mesh=mesh, memory_budget=memory_budget
  ):
    labels[start : start + len(part.labels)] = part.labels
    distances[start : start + len(part.labels)] = part.distances
  return Assignment(labels, distances)

"""Nearest centroids, as fast as the matrix product underneath.

The nearest centroid of x maximises x.c - |c|^2 / 2, so an assignment is a
matrix product and an argmax. The [n, k] scores would be far larger than the
features, so rows go through in blocks whose scores fit a cache (CPU) or a
memory budget (accelerators). Two things keep it near the rate of the product:

* The argmax goes over groups of columns first: `jnp.argmax` costs more than the
  product on CPU.
* Float16 is converted block by block, in cache.

Products are float32 at precision "highest", since the cloud and the client must
agree on the nearest centroid. Equal scores go to the lowest index.

    >>> features = np.array([[0, 1], [8, 9], [9, 8]], np.float32)
    >>> centroids = np.array([[0, 0], [9, 9]], np.float32)
    >>> labels, distances = assign(features, centroids)
    >>> labels.tolist(), distances.tolist()
    ([0, 1, 1], [1.0, 1.0, 1.0])
"""

from collections.abc import Iterator
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax.clustering import centring
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kernels

_ROWS = jax.P("data")
_EVERYWHERE = jax.P()


class Assignment(NamedTuple):
  """The nearest centroid of each row.

  Attributes:
    labels: int32 [n].
    distances: float32 [n], squared Euclidean, by |x|^2 - 2 x.c + |c|^2: good to
      some 1e-6 |x|^2.
  """

  labels: jax.Array | np.ndarray
  distances: jax.Array | np.ndarray


def _group_width(k: int) -> int:
  """Returns the width of a group of columns: near 1.4 sqrt(k), and divides k.

  If none divides k, it nearly does. Multiples of 4 were measured to be faster.
  """
  root = math.isqrt(k)
  widths = range(max(root // 2, 1), min(2 * root, k) + 1)
  return min(
    widths,
    key=lambda width: (-k % width, width % 4 > 0, abs(width - 1.4 * root)),
  )


def _reduce_pairs(scores: jax.Array, reducer) -> tuple[jax.Array, jax.Array]:
  indices = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  first = (jnp.float32(-jnp.inf), jnp.int32(0))
  return jax.lax.reduce((scores, indices), first, reducer, (1,))


def _without(scores: jax.Array, columns: jax.Array) -> jax.Array:
  """Returns the largest of each row outside one column, [n]."""
  every = jnp.arange(scores.shape[1])
  return jnp.max(jnp.where(every == columns[:, None], -jnp.inf, scores), axis=1)


def _top_two_cpu(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns what `top_two` does: finds the best group, then its best column.

  The largest score of each group is vectorised code. Reductions over pairs
  (score, index) are scalar code, so they run over the groups, and over the
  columns of the best group, but not over all columns.
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


def nearest(
  features: jax.Array, centroids: jax.Array, *, fitting: bool = False
) -> Assignment:
  """Returns the assignment of one block.

  On Hopper GPUs one kernel computes it. Elsewhere XLA computes scores [n, k],
  which it does not store on TPUs. Call it in jitted code, under the mesh of the
  devices; `assign` takes any number of rows.

  Args:
    features: [n, d] float16, bfloat16 or float32.
    centroids: [k, d] float32.
    fitting: Whether this is an iteration of k-means, in which
      --assignment=fast trades precision for speed.
  """
  program = kernels.assignment(jax.sharding.get_abstract_mesh())
  exact = features.astype(jnp.float32)
  if program != "xla":
    # Imported only where it runs: Pallas's interface still changes.
    from ecos_jax.clustering.kernels import gpu

    fast = fitting and program == "fast"
    scores, labels = gpu.nearest(features, centroids, fast=fast)
  else:
    products = jax.lax.dot_general(
      exact,
      centroids,
      (((1,), (1,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST,
    )
    half_norms = jnp.sum(centroids * centroids, axis=1) / 2
    # The score is used too: TPU compilers narrow it to bfloat16 otherwise.
    scores, labels = argmax(products - half_norms)
  norms = jnp.sum(exact * exact, axis=1)
  return Assignment(labels, jnp.maximum(norms - 2 * scores, 0))


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def assign_chunk(
  chunk: jax.Array,
  valid: jax.typing.ArrayLike,
  centroids: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
  block: int,
) -> Assignment:
  """Returns the assignment of a chunk [rows, d] sharded over 'data'.

  Args:
    chunk: float16, bfloat16 or float32.
    valid: Number of rows that count; the labels of the others mean nothing.
    centroids: float32 [k, d].
    mesh: The devices.
    block: Rows of a block, from `chunks.plan`.
  """

  def local(chunk, valid, centroids):
    def body(carry, start, features, fresh):
      del fresh
      update = functools.partial(
        jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0
      )
      return jax.tree.map(update, carry, nearest(features, centroids))

    n = len(chunk)
    carry = Assignment(jnp.zeros(n, jnp.int32), jnp.zeros(n))
    return chunks.scan_blocks(body, carry, chunk, valid, block)

  assignment = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(_ROWS, _EVERYWHERE, _EVERYWHERE),
    out_specs=_ROWS,
  )(chunk, valid, centroids)
  if mesh.is_multi_process:
    # Every process gets all of it.
    sharding = jax.sharding.NamedSharding(mesh, _EVERYWHERE)
    assignment = jax.lax.with_sharding_constraint(assignment, sharding)
  return assignment


def stream(
  features: chunks.Features,
  centroids: jax.typing.ArrayLike,
  *,
  mesh: jax.sharding.Mesh | None = None,
  memory_budget: int = chunks.MEMORY_BUDGET,
) -> Iterator[tuple[int, Assignment]]:
  """Yields (first row, assignment) of successive rows, as numpy arrays.

  Memory does not grow with the number of rows.

  Args:
    features: [n, d] float16, bfloat16 or float32, finite.
    centroids: [k, d] float32, finite.
    mesh: Devices to share the rows of a chunk; None for one.
    memory_budget: Bytes for a chunk and for the scores of a block, together.
  """
  mesh = mesh or chunks.single_device_mesh()
  centroids = np.asarray(centroids, np.float32)
  offset = centring.offset(centroids)
  features = centring.without(features, offset)
  device_centroids = jnp.asarray(centroids - offset)
  rows, block = chunks.plan(
    features.shape,
    len(centroids),
    mesh,
    memory_budget,
    in_memory=chunks.shares_memory(features, mesh),
  )
  parts = (
    (
      start,
      valid,
      assign_chunk(chunk, valid, device_centroids, mesh=mesh, block=block),
    )
    for start, valid, chunk in chunks.read(features, rows, mesh)
  )
  # One is fetched while the next is computed.
  for start, valid, assignment in chunks.one_ahead(parts):
    yield start, Assignment(*(np.asarray(a)[:valid] for a in assignment))


def assign(
  features: jax.typing.ArrayLike,
  centroids: jax.typing.ArrayLike,
  *,
  mesh: jax.sharding.Mesh | None = None,
  memory_budget: int = chunks.MEMORY_BUDGET,
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

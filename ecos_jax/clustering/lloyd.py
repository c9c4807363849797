"""One iteration of Lloyd's algorithm on a chunk of rows, plain or pruned.

Both return the sums [k, d], counts [k] and inertia of a chunk that is sharded
over the mesh axis 'data'; only these cross devices. The plain step compares
every row with every centroid. The pruned step skips this for most rows, by the
triangle inequality: each row keeps a lower bound of its distance to all other
centroids (Hamerly 2010), which shrinks by the farthest move of any of these. A
few centroids move much farther than the rest and would spoil the bounds of all
rows, so rows are compared with these few directly. The rows that may have a new
nearest centroid are packed into full blocks and compared with all centroids.
The bounds allow for rounding, so the labels are those of the plain step.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks

_ROWS = jax.P("data")
_EVERYWHERE = jax.P()
# Every row is compared with the k / 16 centroids that moved farthest.
_MOVERS = 16
# The rows to compare with all centroids are packed into 1/8 of a block.
_PACKED = 8
# Bounds the rounding of |x|^2 - 2 x.c + |c|^2, relative to |x|^2 + |c|^2.
_ROUNDING = 2e-6


class Sums(NamedTuple):
  """Sums over the rows of a chunk.

  Attributes:
    features: float32 [k, d], the sum of the rows nearest to each centroid.
    counts: int32 [k], the number of these rows.
    inertia: float32, the sum of squared distances to the nearest centroid.
    compared: int32, the number of rows compared with every centroid.
  """

  features: jax.Array
  counts: jax.Array
  inertia: jax.Array
  compared: jax.Array


class Bounds(NamedTuple):
  """Bounds for each row of a chunk, padding included.

  Attributes:
    labels: int32 [rows], the nearest centroid before the last move.
    lower: float32 [rows], a lower bound of the distance to all other centroids.
  """

  labels: jax.Array
  lower: jax.Array


class Moves(NamedTuple):
  """How far the centroids moved since the bounds were computed.

  Attributes:
    fastest: int32 [m], the centroids that moved farthest.
    rest: float32, the farthest move of all other centroids.
  """

  fastest: np.ndarray
  rest: np.float32


def moves(before: np.ndarray, after: np.ndarray) -> Moves:
  """Returns the moves between two sets of centroids, float32 [k, d]."""
  distances = np.linalg.norm(after.astype(np.float64) - before, axis=1)
  m = max(len(distances) // _MOVERS, 1)
  order = np.argsort(-distances, kind="stable")
  rest = distances[order[m]] if m < len(distances) else 0.0
  rest = np.nextafter(np.float32(rest), np.float32(np.inf))
  return Moves(order[:m].astype(np.int32), rest)


def _zeros(centroids: jax.Array) -> Sums:
  zero = jnp.int32(0)
  counts = jnp.zeros(len(centroids), jnp.int32)
  return Sums(jnp.zeros_like(centroids), counts, jnp.float32(0), zero)


def _add(sums: Sums, features, fresh, labels, distances, compared) -> Sums:
  # Rows of label k are dropped.
  labels = jnp.where(fresh, labels, len(sums.counts))
  return Sums(
    sums.features.at[labels].add(features, mode="drop"),
    sums.counts.at[labels].add(1, mode="drop"),
    sums.inertia + jnp.sum(jnp.where(fresh, distances, 0)),
    sums.compared + compared,
  )


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def plain(
  chunk: jax.Array,
  valid: jax.typing.ArrayLike,
  centroids: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
  block: int,
) -> Sums:
  """Returns the sums of a chunk [rows, d] whose first `valid` rows count."""

  def local(chunk, valid, centroids):
    def body(sums, start, features, fresh):
      del start
      found = assign.nearest(features, centroids, fitting=True)
      features = features.astype(jnp.float32)
      return _add(sums, features, fresh, *found, jnp.sum(fresh))

    sums = chunks.scan_blocks(body, _zeros(centroids), chunk, valid, block)
    return jax.lax.psum(sums, "data")

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(_ROWS, _EVERYWHERE, _EVERYWHERE),
    out_specs=_EVERYWHERE,
  )(chunk, valid, centroids)


@functools.partial(jax.jit, static_argnames=("rows", "mesh"))
def no_bounds(rows: int, mesh: jax.sharding.Mesh) -> Bounds:
  """Returns bounds that prune nothing, for a chunk of `rows` rows."""
  bounds = Bounds(jnp.zeros(rows, jnp.int32), jnp.full(rows, -jnp.inf))
  return jax.lax.with_sharding_constraint(
    bounds, jax.sharding.NamedSharding(mesh, _ROWS)
  )


@functools.partial(
  jax.jit, static_argnames=("mesh", "block"), donate_argnames=("bounds",)
)
def pruned(
  chunk: jax.Array,
  valid: jax.typing.ArrayLike,
  bounds: Bounds,
  moves: Moves,
  centroids: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
  block: int,
) -> tuple[Sums, Bounds]:
  """Returns the sums of a chunk [rows, d], and the bounds for the next step."""
  return jax.shard_map(
    functools.partial(_pruned, block=block),
    mesh=mesh,
    in_specs=(_ROWS, _EVERYWHERE, _ROWS, _EVERYWHERE, _EVERYWHERE),
    out_specs=(_EVERYWHERE, _ROWS),
  )(chunk, valid, bounds, moves, centroids)


def _pruned(chunk, valid, bounds, moves, centroids, *, block):
  """Returns what `pruned` does, on one device."""
  packed = max(block // _PACKED, 1)
  half_norms = jnp.sum(centroids * centroids, axis=1) / 2
  largest = 2 * jnp.max(half_norms)
  every = jnp.arange(len(centroids), dtype=jnp.int32)

  def scores(features, columns):
    products = jax.lax.dot_general(
      features,
      centroids[columns],
      (((1,), (1,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST,
    )
    return products - half_norms[columns]

  def lower_bound(norms, scores):
    slack = _ROUNDING * (norms + largest)
    return jnp.sqrt(jnp.maximum(norms - 2 * scores - slack, 0))

  def compare(features, norms):
    """Returns labels, squared distances and bounds, from all centroids."""
    best, labels, second = assign.top_two(scores(features, every))
    distances = jnp.maximum(norms - 2 * best, 0)
    return labels, distances, lower_bound(norms, second)

  def body(carry, start, features, fresh):
    sums, after = carry
    features = features.astype(jnp.float32)
    before = Bounds(
      *(jax.lax.dynamic_slice_in_dim(b, start, block) for b in bounds)
    )
    norms = jnp.sum(features * features, axis=1)
    distances = jnp.sum((features - centroids[before.labels]) ** 2, axis=1)
    own = before.labels[:, None] == moves.fastest
    fast = jnp.where(own, -jnp.inf, scores(features, moves.fastest)).max(1)
    # Rounded down, so that many moves do not add up to too high a bound.
    rest = (before.lower - moves.rest) * (1 - jnp.finfo(jnp.float32).eps)
    lower = jnp.minimum(rest, lower_bound(norms, fast))
    upper = jnp.sqrt(distances + _ROUNDING * (norms + largest))
    undecided = upper >= lower
    rows = jnp.nonzero(undecided, size=block, fill_value=block)[0]
    blocks = -(-jnp.sum(undecided) // packed)

    def step(i, state):
      part = jax.lax.dynamic_slice_in_dim(rows, i * packed, packed)
      found = compare(
        features.at[part].get(mode="clip"), norms.at[part].get(mode="clip")
      )
      return tuple(
        old.at[part].set(new, mode="drop")
        for old, new in zip(state, found, strict=True)
      )

    labels, distances, lower = jax.lax.fori_loop(
      0, blocks, step, (before.labels, distances, lower)
    )
    update = functools.partial(
      jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0
    )
    after = jax.tree.map(update, after, Bounds(labels, lower))
    compared = jnp.sum(undecided & fresh)
    return _add(sums, features, fresh, labels, distances, compared), after

  after = Bounds(jnp.zeros(len(chunk), jnp.int32), jnp.zeros(len(chunk)))
  sums, after = chunks.scan_blocks(
    body, (_zeros(centroids), after), chunk, valid, block
  )
  return jax.lax.psum(sums, "data"), after

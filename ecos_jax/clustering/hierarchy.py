"""Very many centroids: a coarse clustering, and a fine one inside each cluster.

With 10^5 centroids a flat k-means costs N * 10^5 distances a pass. Here a row
is compared with the coarse centroids, and then with the fine ones of its coarse
cluster only: about 2 sqrt(k) distances, where there are sqrt(k) coarse
clusters. A row near a border may have its nearest fine centroid on the other
side; it then goes to the nearest on its own side.

Rows of a chunk are sorted by coarse cluster and go through in blocks of one
cluster each; the fine centroids lie in tiles of one cluster each. So all shapes
are static, whatever the sizes of the clusters.
"""

from collections.abc import Iterator
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import start as start_lib

_TILE = 128
_ROWS = 128
_DATA = jax.P("data")
_EVERYWHERE = jax.P()
_MEMORY_BUDGET = 1 << 30


class Tree(NamedTuple):
  """Two levels of centroids.

  Attributes:
    coarse: float32 [g, d].
    centroids: float32 [k, d], sorted by coarse cluster.
    starts: int32 [g + 1], where the fine centroids of each cluster begin; none
      is without.
  """

  coarse: np.ndarray
  centroids: np.ndarray
  starts: np.ndarray


class _Tiles(NamedTuple):
  """The fine centroids in tiles [t, _TILE], each of one coarse cluster.

  Attributes:
    coarse: float32 [g, d].
    centroids: float32 [t, _TILE, d]; what fills a tile up is never nearest.
    labels: int32 [t, _TILE].
    starts: int32 [g + 1], the first tile of each coarse cluster.
  """

  coarse: jax.Array
  centroids: jax.Array
  labels: jax.Array
  starts: jax.Array


def _tiles(tree: Tree) -> _Tiles:
  sizes = np.diff(tree.starts)
  starts = np.concatenate([[0], np.cumsum(-(-sizes // _TILE))])
  # The last tile of a cluster is filled up with its last centroid, again.
  tile = np.arange(starts[-1])
  cluster = np.searchsorted(starts, tile, side="right") - 1
  first = tree.starts[cluster] + (tile - starts[cluster]) * _TILE
  labels = first[:, None] + np.arange(_TILE)
  labels = np.minimum(labels, tree.starts[cluster + 1][:, None] - 1)
  return _Tiles(
    jnp.asarray(tree.coarse),
    jnp.asarray(tree.centroids[labels]),
    jnp.asarray(labels, jnp.int32),
    jnp.asarray(starts, jnp.int32),
  )


def _fine(
  features: jax.Array, coarse: jax.Array, tiles: _Tiles
) -> assign.Assignment:
  """Returns the assignment of a device's rows [n, d] to the fine centroids.

  Args:
    features: [n, d].
    coarse: int32 [n], the coarse cluster of each row; g for none.
    tiles: The fine centroids.
  """
  n = len(features)
  counts = jnp.bincount(coarse, length=len(tiles.coarse))
  ends = jnp.cumsum(counts)
  blocks = -(-counts // _ROWS)
  last_block = jnp.cumsum(blocks)
  # A block may reach over the end of its cluster, and of the rows.
  order = jnp.pad(jnp.argsort(coarse), (0, _ROWS), constant_values=n)
  half_norms = jnp.sum(tiles.centroids**2, axis=2) / 2
  vary = functools.partial(jax.lax.pcast, axis_name="data", to="varying")

  def block(i, found):
    cluster = jnp.searchsorted(last_block, i, side="right")
    skipped = i - (last_block[cluster] - blocks[cluster])
    begin = ends[cluster] - counts[cluster] + skipped * _ROWS
    rows = jax.lax.dynamic_slice_in_dim(order, begin, _ROWS)
    rows = jnp.where(begin + jnp.arange(_ROWS) < ends[cluster], rows, n)
    x = features.at[rows].get(mode="clip").astype(jnp.float32)

    def tile(t, best):
      products = jnp.matmul(
        x, tiles.centroids[t].T, precision=jax.lax.Precision.HIGHEST
      )
      scores, columns = assign.argmax(products - half_norms[t])
      better = scores > best[0]
      return (
        jnp.where(better, scores, best[0]),
        jnp.where(better, tiles.labels[t][columns], best[1]),
      )

    nothing = (jnp.full(_ROWS, -jnp.inf), jnp.zeros(_ROWS, jnp.int32))
    scores, labels = jax.lax.fori_loop(
      tiles.starts[cluster], tiles.starts[cluster + 1], tile, vary(nothing)
    )
    distances = jnp.maximum(jnp.sum(x * x, axis=1) - 2 * scores, 0)
    return assign.Assignment(
      found.labels.at[rows].set(labels, mode="drop"),
      found.distances.at[rows].set(distances, mode="drop"),
    )

  found = vary(assign.Assignment(jnp.zeros(n, jnp.int32), jnp.zeros(n)))
  return jax.lax.fori_loop(0, last_block[-1], block, found)


def _coarse(
  chunk: jax.Array, valid: jax.Array, centroids: jax.Array, block: int
) -> jax.Array:
  """Returns the coarse cluster of a device's rows, g for padding."""

  def body(labels, start, features, fresh):
    del fresh
    part = assign.nearest(features, centroids).labels
    return jax.lax.dynamic_update_slice_in_dim(labels, part, start, axis=0)

  rows = len(chunk)
  none = jnp.full(rows, len(centroids), jnp.int32)
  labels = chunks.scan_blocks(body, none, chunk, valid, block)
  row = jax.lax.axis_index("data") * rows + jnp.arange(rows)
  return jnp.where(row < valid, labels, len(centroids))


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _assign_chunk(chunk, valid, tiles, *, mesh, block):
  def local(chunk, valid, tiles):
    return _fine(chunk, _coarse(chunk, valid, tiles.coarse, block), tiles)

  found = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(_DATA, _EVERYWHERE, _EVERYWHERE),
    out_specs=_DATA,
  )(chunk, valid, tiles)
  return assign.everywhere(found, mesh)


@functools.partial(jax.jit, static_argnames=("mesh", "block", "k"))
def _lloyd_chunk(chunk, valid, tiles, *, mesh, block, k):
  """Returns the sums [k, d], counts [k] and inertia of a sharded chunk."""

  def local(chunk, valid, tiles):
    coarse = _coarse(chunk, valid, tiles.coarse, block)
    labels, distances = _fine(chunk, coarse, tiles)
    # Rows of label k are dropped.
    labels = jnp.where(coarse < len(tiles.coarse), labels, k)
    sums = jnp.zeros((k, chunk.shape[1]), jnp.float32)
    sums = sums.at[labels].add(chunk.astype(jnp.float32), mode="drop")
    counts = jnp.zeros(k, jnp.int32).at[labels].add(1, mode="drop")
    return jax.lax.psum((sums, counts, jnp.sum(distances)), "data")

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(_DATA, _EVERYWHERE, _EVERYWHERE),
    out_specs=_EVERYWHERE,
  )(chunk, valid, tiles)


def stream(
  features: np.ndarray | chunks.Rows,
  tree: Tree,
  *,
  mesh: jax.sharding.Mesh | None = None,
  memory_budget: int = _MEMORY_BUDGET,
) -> Iterator[tuple[int, assign.Assignment]]:
  """Yields (first row, assignment) of successive rows, as numpy arrays.

  Args:
    features: [n, d] float16, bfloat16 or float32, finite.
    tree: The centroids; labels are rows of `tree.centroids`.
    mesh: Devices to share the rows of a chunk; None for one.
    memory_budget: Bytes for a chunk and for the scores of a block, together.
  """
  mesh = mesh or chunks.single_device_mesh()
  plan = chunks.plan(features.shape, len(tree.coarse), mesh, memory_budget)
  tiles = _tiles(tree)
  options = {"mesh": mesh, "block": plan.block}
  return assign.fetched(
    (start, slice(valid), _assign_chunk(chunk, valid, tiles, **options))
    for start, valid, chunk in chunks.read(features, plan.chunk, mesh)
  )


def _first(
  features: np.ndarray | chunks.Rows, coarse: np.ndarray, k: int, key, mesh
) -> Tree:
  """Returns a tree with k random rows as fine centroids."""
  rows = start_lib.subsample(features.shape[0], k, key)
  centroids = kmeans.take(features, rows)
  labels = assign.assign(centroids, coarse, mesh=mesh).labels
  order = np.argsort(labels, kind="stable")
  # A coarse cluster that got none leaves its rows to its neighbours.
  occupied, sizes = np.unique(labels, return_counts=True)
  starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
  return Tree(coarse[occupied], centroids[order], starts)


def fit(
  features: np.ndarray | chunks.Rows,
  k: int,
  key: jax.Array,
  *,
  coarse: int,
  iterations: int = 50,
  tolerance: float = 1e-4,
  sample: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Tree, kmeans.KMeans]:
  """Returns k centroids in `coarse` clusters, and what is known of them.

  The coarse centroids come from `kmeans.fit`; the fine ones start at random
  rows, so that each coarse cluster gets its share, and are moved by Lloyd's
  algorithm on the rows of their coarse cluster. One that loses its last row
  stays where it is.

  Args:
    features: [n, d], an array or a feature bank; float16, bfloat16 or float32.
    k: Number of fine centroids.
    key: Random key.
    coarse: Number of coarse centroids; sqrt(k) costs the fewest distances.
    iterations: Moves of the centroids of each level at most.
    tolerance: Stops when the inertia falls by less than this share of it.
    sample: Rows to fit on, drawn at random, in memory. None or n and more: all
      of them, read again in each pass.
    mesh: Devices to share the rows; None for one.

  Raises:
    EcosError: k or `coarse` does not lie in 1..n, or features are not finite.
  """
  mesh = mesh or chunks.single_device_mesh()
  n, d = features.shape
  kmeans.check_size(k, n)
  sample_key, coarse_key, fine_key = jax.random.split(key, 3)
  if sample is not None and sample < n:
    n = max(sample, k)
    rows = start_lib.subsample(features.shape[0], n, sample_key)
    features = kmeans.take(features, rows)
  top = kmeans.fit(
    features,
    coarse,
    coarse_key,
    iterations=iterations,
    tolerance=tolerance,
    sample=kmeans.SAMPLE_PER_CENTROID * coarse,
    mesh=mesh,
  ).centroids
  tree = _first(features, top, k, fine_key, mesh)
  plan = chunks.plan((n, d), len(tree.coarse), mesh, _MEMORY_BUDGET)
  inertias: list[float] = []
  progress = tqdm.tqdm(
    total=iterations, desc="fine k-means", unit=" iterations", disable=None
  )
  with progress:
    while True:
      tiles = _tiles(tree)
      sums, counts, inertia = kmeans.total(
        _lloyd_chunk(chunk, valid, tiles, mesh=mesh, block=plan.block, k=k)
        for _, valid, chunk in chunks.read(features, plan.chunk, mesh)
      )
      inertias.append(inertia)
      progress.set_postfix(inertia=f"{inertia:.6g}")
      fell = len(inertias) == 1 or (
        inertias[-2] - inertia > tolerance * inertias[-2]
      )
      if not fell or len(inertias) > iterations:
        break
      occupied = counts > 0
      tree.centroids[occupied] = sums[occupied] / counts[occupied, None]
      progress.update()
  return tree, kmeans.KMeans(
    tree.centroids, counts, np.asarray(inertias), len(inertias) - 1, not fell, 0
  )

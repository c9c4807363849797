"""k-means on any number of rows: in memory or streamed, on one device or many.

Rows pass through the devices in chunks, each sharded over the mesh axis 'data'.
Per chunk only the [k, d] sums and [k] counts leave the devices; they are added
up in float64 on the host, the same numbers in every process, so that all
processes decide alike. Chunks that fit the memory budget stay on the devices;
others are read again for every pass, and the result is the same.
"""

from collections.abc import Iterable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax.clustering import assign

_MEMORY_BUDGET = 2 << 30
# k-means++ reads its sample k times, and needs few points for a good start.
_START_ROWS_PER_CENTROID = 32
_MIN_START_ROWS = 16384


class KMeans(NamedTuple):
  """A clustering, as numpy arrays.

  Attributes:
    centroids: float32 [k, d].
    sizes: int64 [k], how many of the rows fitted on are nearest to each.
    inertia: float64 [iterations + 1], the sum of squared distances before each
      iteration; the last is that of `centroids`.
    iterations: How often the centroids were moved.
    converged: Whether the inertia stopped falling.
    reseeded: How many empty clusters were moved to a far sample.
  """

  centroids: np.ndarray
  sizes: np.ndarray
  inertia: np.ndarray
  iterations: int
  converged: bool
  reseeded: int


def generator(key: jax.Array) -> np.random.Generator:
  """Returns the numpy generator that belongs to a JAX key."""
  return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def subsample(n: int, size: int, key: jax.Array) -> np.ndarray:
  """Returns `size` distinct rows out of n, uniform, int64 [size], sorted."""
  rows = generator(key).choice(n, size, replace=False, shuffle=False)
  return np.sort(rows)


@functools.partial(jax.jit, static_argnames=("k",))
def plus_plus(features: jax.Array, k: int, key: jax.Array) -> jax.Array:
  """Returns k rows that are spread out, [k, d]: greedy k-means++.

  Each new centroid is the best of 2 + log(k) candidates drawn with probability
  proportional to the squared distance from those there are (Arthur and
  Vassilvitskii 2007, section 2.2 and the greedy variant of its conclusions).

  Args:
    features: float32 [n, d].
    k: Number of centroids.
    key: Random key.
  """
  trials = 2 + int(np.log(k))
  norms = jnp.sum(features * features, axis=1)

  def distances(rows):
    candidates = features[rows]
    products = jnp.matmul(
      features, candidates.T, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.maximum(norms[:, None] - 2 * products + norms[rows], 0)

  def step(i, carry):
    chosen, closest = carry
    cumulative = jnp.cumsum(closest)
    uniform = jax.random.uniform(jax.random.fold_in(key, i), (trials,))
    rows = jnp.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    rows = jnp.minimum(rows, len(features) - 1)
    closer = jnp.minimum(closest[:, None], distances(rows))
    best = jnp.argmin(jnp.sum(closer, axis=0))
    return chosen.at[i].set(rows[best].astype(jnp.int32)), closer[:, best]

  first = jax.random.randint(jax.random.fold_in(key, 0), (1,), 0, len(features))
  chosen = jnp.zeros(k, jnp.int32).at[0].set(first[0])
  chosen, _ = jax.lax.fori_loop(1, k, step, (chosen, distances(first)[:, 0]))
  return features[chosen]


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _lloyd_chunk(chunk, valid, centroids, *, mesh, block):
  """Returns the sums [k, d], counts [k] and inertia of a sharded chunk."""

  def local(chunk, valid, centroids):
    k = len(centroids)

    def body(carry, start, features, fresh):
      del start
      sums, counts, inertia = carry
      labels, distances = assign.nearest(features, centroids)
      # Rows of label k are dropped.
      labels = jnp.where(fresh, labels, k)
      return (
        sums.at[labels].add(features, mode="drop"),
        counts.at[labels].add(1, mode="drop"),
        inertia + jnp.sum(jnp.where(fresh, distances, 0)),
      )

    carry = (
      jnp.zeros_like(centroids),
      jnp.zeros(k, jnp.int32),
      jnp.float32(0),
    )
    carry = assign.scan_blocks(body, carry, chunk, valid, block)
    return jax.lax.psum(carry, "data")

  rows, everywhere = jax.P("data"), jax.P()
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(rows, everywhere, everywhere),
    out_specs=everywhere,
  )(chunk, valid, centroids)


def _take(features: np.ndarray | assign.Rows, rows: np.ndarray) -> np.ndarray:
  if isinstance(features, np.ndarray):
    return features[rows].astype(np.float32)
  return features.take(rows)


def _farthest(features, centroids, count, mesh) -> np.ndarray:
  """Returns up to `count` rows, float32 [m, d], the farthest first."""
  distances = np.zeros(0, np.float32)
  rows = np.zeros(0, np.int64)
  for start, part in assign.stream(features, centroids, mesh=mesh):
    distances = np.concatenate([distances, part.distances])
    rows = np.concatenate([rows, start + np.arange(len(part.labels))])
    kept = np.argsort(-distances, kind="stable")[:count]
    distances, rows = distances[kept], rows[kept]
  far = _take(features, rows)
  # What rounding makes of a sample on its centroid is no distance.
  return far[distances > 1e-6 * np.sum(far * far, axis=1)]


def _in_memory(features: assign.Rows, rows: int) -> np.ndarray:
  array = np.empty(features.shape, features.dtype)
  for start, block in features.blocks(rows):
    array[start : start + len(block)] = block
  return array


def _pass(chunks: Iterable, centroids: np.ndarray, mesh, block: int):
  """Returns float64 [k, d] sums, int64 [k] counts, and the inertia."""
  sums = np.zeros(centroids.shape)
  counts = np.zeros(len(centroids), np.int64)
  inertia = 0.0
  device_centroids = jnp.asarray(centroids)
  for _, valid, chunk in chunks:
    parts = _lloyd_chunk(chunk, valid, device_centroids, mesh=mesh, block=block)
    chunk_sums, chunk_counts, chunk_inertia = map(np.asarray, parts)
    sums += chunk_sums
    counts += chunk_counts
    inertia += float(chunk_inertia)
  return sums, counts, inertia


def fit(
  features: np.ndarray | jax.Array | assign.Rows,
  k: int,
  key: jax.Array,
  *,
  init: jax.typing.ArrayLike | None = None,
  iterations: int = 50,
  tolerance: float = 1e-4,
  sample: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  memory_budget: int = _MEMORY_BUDGET,
) -> KMeans:
  """Returns k centroids by Lloyd's algorithm (Lloyd 1982), from k-means++.

  The same for a key, whatever the memory budget; on other numbers of devices to
  rounding. An empty cluster moves to the sample farthest from its centroid.

  Args:
    features: [n, d], an array or a feature bank; float16, bfloat16 or float32.
    k: Number of centroids.
    key: Random key.
    init: The first centroids, [k, d]; None for greedy k-means++ on a sample.
    iterations: Moves of the centroids at most.
    tolerance: Stops when the inertia falls by less than this share of it.
    sample: Rows to fit on, drawn at random, in the memory of every process;
      256 k is ample. None or n and more: all of them.
    mesh: Devices to share the rows; None for one.
    memory_budget: Bytes of features to keep on the devices; what is larger is
      read again in each pass.

  Raises:
    EcosError: k does not lie in 1..n, or features are not finite.
    PreemptedError: The process was told to stop.
  """
  if isinstance(features, jax.Array):
    features = np.asarray(features)
  n, d = features.shape
  if not 1 <= k <= n:
    raise errors.EcosError(
      f"--config.codebook.size={k}: it must lie between 1 and the number of "
      f"samples, {n}"
    )
  mesh = mesh or assign.single_device_mesh()
  sample_key, start_key = jax.random.split(key)
  if sample is not None and sample < n:
    n = max(sample, k)
    features = _take(features, subsample(features.shape[0], n, sample_key))
  plan = assign.plan((n, d), k, mesh)
  resident = n * d * features.dtype.itemsize <= memory_budget
  if resident and not isinstance(features, np.ndarray):
    features = _in_memory(features, plan.chunk)

  if init is None:
    rows = min(n, max(_START_ROWS_PER_CENTROID * k, _MIN_START_ROWS))
    start = _take(features, subsample(n, rows, start_key))
    init = plus_plus(start, k, start_key)
  centroids = np.array(init, np.float32)
  if centroids.shape != (k, d):
    raise ValueError(f"init must be [{k}, {d}], got {list(centroids.shape)}")

  kept = list(assign.chunks(features, plan.chunk, mesh)) if resident else None
  inertias: list[float] = []
  reseeded = 0
  progress = tqdm.tqdm(
    total=iterations, desc="k-means", unit=" iterations", disable=None
  )
  with progress:
    while True:
      distributed.stop_if_told(mesh)
      chunks = kept or assign.chunks(features, plan.chunk, mesh)
      sums, counts, inertia = _pass(chunks, centroids, mesh, plan.block)
      if not np.isfinite(inertia):
        raise errors.EcosError(
          "k-means: the features hold NaN or infinite values"
        )
      inertias.append(inertia)
      progress.set_postfix(inertia=f"{inertia:.6g}")
      empty = np.flatnonzero(counts == 0)
      far = (
        _farthest(features, centroids, len(empty), mesh)
        if len(empty)
        else np.zeros((0, d), np.float32)
      )
      converged = (
        not len(far)
        and len(inertias) > 1
        and inertias[-2] - inertia <= tolerance * inertias[-2]
      )
      if converged or len(inertias) > iterations:
        break
      occupied = counts > 0
      centroids[occupied] = sums[occupied] / counts[occupied, None]
      centroids[empty[: len(far)]] = far
      reseeded += len(far)
      progress.update()
  return KMeans(
    centroids,
    counts,
    np.asarray(inertias),
    len(inertias) - 1,
    bool(converged),
    reseeded,
  )

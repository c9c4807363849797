"""First centroids for k-means, spread over the features.

A good start matters where clusters are separated: a cluster without a first
centroid is found late or never. k-means++ draws the centroids one after the
other; k-means|| draws candidates in a few rounds that any mesh can share, and
chooses among them by k-means++.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax import errors
from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks

# k-means++ reads its sample k times, and a small sample gives a good start.
_ROWS_PER_CENTROID = 32
_MIN_ROWS = 16384
_ROUNDS = 5


def checked(key: jax.Array) -> jax.Array:
  """Returns a random key.

  Raises:
    EcosError: It is none.
  """
  try:
    jax.random.key_data(key)
  except TypeError:
    raise errors.EcosError(
      f"`key` must be a random key, such as jax.random.key(0), got {key!r}"
    ) from None
  return key


def generator(key: jax.Array) -> np.random.Generator:
  """Returns the numpy generator that belongs to a JAX key."""
  return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def subsample(n: int, size: int, key: jax.Array) -> np.ndarray:
  """Returns `size` distinct rows out of n, uniform, int64 [size], sorted."""
  rows = generator(key).choice(n, size, replace=False, shuffle=False)
  return np.sort(rows)


def sample_rows(n: int, k: int) -> int:
  """Returns the number of rows, of n, that k first centroids are drawn from."""
  return min(n, max(_ROWS_PER_CENTROID * k, _MIN_ROWS))


@functools.partial(jax.jit, static_argnames=("k",))
def plus_plus(
  features: jax.Array,
  k: int,
  key: jax.Array,
  weights: jax.Array | None = None,
) -> jax.Array:
  """Returns k rows that are spread out, [k, d]: greedy k-means++.

  Each new centroid is the best of 2 + log(k) candidates, drawn with probability
  proportional to the squared distance to the nearest centroid so far (Arthur
  and Vassilvitskii 2007, section 2.2; greedy as in its conclusions).

  Args:
    features: float32 [n, d].
    k: Number of centroids.
    key: Random key.
    weights: float32 [n], how often each row counts; None for once.
  """
  trials = 2 + int(np.log(k))
  norms = jnp.sum(features * features, axis=1)
  weights = jnp.ones_like(norms) if weights is None else weights

  def draw(i, mass, count):
    cumulative = jnp.cumsum(mass)
    uniform = jax.random.uniform(jax.random.fold_in(key, i), (count,))
    rows = jnp.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return jnp.minimum(rows, len(features) - 1).astype(jnp.int32)

  def distances(rows):
    candidates = features[rows]
    products = jnp.matmul(
      features, candidates.T, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.maximum(norms[:, None] - 2 * products + norms[rows], 0)

  def step(i, carry):
    chosen, closest = carry
    rows = draw(i, closest * weights, trials)
    closer = jnp.minimum(closest[:, None], distances(rows))
    best = jnp.argmin(weights @ closer)
    return chosen.at[i].set(rows[best]), closer[:, best]

  first = draw(0, weights, 1)
  chosen = jnp.zeros(k, jnp.int32).at[0].set(first[0])
  chosen, _ = jax.lax.fori_loop(1, k, step, (chosen, distances(first)[:, 0]))
  return features[chosen]


def parallel(
  features: np.ndarray, k: int, key: jax.Array, mesh: jax.sharding.Mesh
) -> jax.Array:
  """Returns k rows that are spread out, float32 [k, d]: k-means||.

  Five rounds draw some k / 2 candidates each: every row with a probability
  proportional to its squared distance to the nearest candidate so far. Of the
  candidates, weighted by the number of rows nearest to each, k-means++ chooses
  k (Bahmani et al. 2012, algorithm 2). Distances are computed on the whole
  mesh.

  Args:
    features: float16, bfloat16 or float32 [n, d].
    k: Number of centroids.
    key: Random key.
    mesh: Devices to share the rows.
  """
  rounds_key, thinning_key = jax.random.split(key)
  random = generator(rounds_key)
  # Repeated candidates change nothing, and give all rounds one shape.
  width = k // 2 + 4 * int(np.sqrt(k)) + 1
  rows = random.integers(len(features), size=1)
  candidates = [features[np.resize(rows, width)].astype(np.float32)]
  closest = assign.assign(features, candidates[0], mesh=mesh).distances
  for _ in range(_ROUNDS):
    total = closest.sum(dtype=np.float64)
    if not total:
      break
    chances = closest * (k / 2 / total)
    rows = np.flatnonzero(random.random(len(closest)) < chances)
    if not len(rows):
      continue
    candidates.append(features[np.resize(rows, width)].astype(np.float32))
    nearest = assign.assign(features, candidates[-1], mesh=mesh)
    closest = np.minimum(closest, nearest.distances)
  pooled = np.concatenate(candidates)
  labels = assign.assign(features, pooled, mesh=mesh).labels
  weights = np.bincount(labels, minlength=len(pooled)).astype(np.float32)
  return plus_plus(pooled, k, thinning_key, weights)


def centroids(
  features: chunks.Features, k: int, key: jax.Array, mesh: jax.sharding.Mesh
) -> np.ndarray:
  """Returns k first centroids, float32 [k, d], from a random sample of rows.

  By k-means|| if there are many more rows than centroids, else by k-means++.

  Args:
    features: [n, d] with n >= k; `sample_rows` of its rows are read.
    k: Number of centroids.
    key: Random key.
    mesh: Devices to share the rows.
  """
  n = features.shape[0]
  rows = chunks.take(features, subsample(n, sample_rows(n, k), key))
  if len(rows) < 4 * k or k < _ROWS_PER_CENTROID:
    return np.array(plus_plus(rows, k, key))
  return np.array(parallel(rows, k, key, mesh))

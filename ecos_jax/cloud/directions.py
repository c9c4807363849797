"""Public directions that a client's samples vote on, and what the votes say.

The directions are whitened principal components of the pool. Each sample has
the coordinates z = directions (x - mean), and votes with the sign of z on the m
directions where z is largest. From the client's noisy mean votes `density`
estimates its density over the pool's: for every sample, not only every cluster.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from ecos_jax import errors
from ecos_jax.clustering import chunks
from ecos_jax.clustering import start as start_lib

# Up to so many dimensions the whole covariance is computed, in one pass.
_EXACT = 1024
# Halko, Martinsson and Tropp 2011: directions beyond those asked for, and
# multiplications by the covariance after the first.
_OVERSAMPLING = 16
_POWERS = 2
# Smaller variances, relative to the largest, are rounding.
_LEAST_VARIANCE = 1e-6
# Rows whose mean is near that of all: no large numbers are subtracted.
_SHIFT_ROWS = 4096
# Rows that stand for the pool where a density is fitted.
_FITTED_ROWS = 1 << 15
_NEWTON_STEPS = 20
_LEAST_GAIN = 1e-9
# Of a cluster's log density, beyond what votes say, before it is known.
_LEVEL_VARIANCE = 2.0
_EVERYWHERE = jax.P()
_HIGHEST = jax.lax.Precision.HIGHEST


class Directions(NamedTuple):
  """Directions through the pool's mean.

  Attributes:
    axes: float32 [p, d], of float16 numbers. Their coordinates of the pool are
      uncorrelated and have one variance.
    mean: float32 [d].
  """

  axes: np.ndarray
  mean: np.ndarray


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _moments(chunk, valid, shift, basis, *, mesh, block):
  """Returns sums over the rows r = x - shift of a chunk: r, and r^T (r basis).

  Args:
    chunk: [rows, d].
    valid: int32, how many of the rows count.
    shift: float32 [d].
    basis: float32 [d, l]; None for the identity.
    mesh: The devices that share the chunk.
    block: Rows to compute with at a time.
  """

  def local(chunk, valid, shift, basis):
    def body(carry, start, features, fresh):
      del start
      total, product = carry
      rows = jnp.where(fresh[:, None], features.astype(jnp.float32) - shift, 0)
      right = rows
      if basis is not None:
        right = jnp.dot(rows, basis, precision=_HIGHEST)
      product += jnp.dot(rows.T, right, precision=_HIGHEST)
      return total + rows.sum(axis=0), product

    d = chunk.shape[1]
    columns = d if basis is None else basis.shape[1]
    zeros = jnp.zeros(d), jnp.zeros((d, columns))
    sums = chunks.scan_blocks(body, zeros, chunk, valid, block)
    return jax.lax.psum(sums, "data")

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(jax.P("data"), _EVERYWHERE, _EVERYWHERE, _EVERYWHERE),
    out_specs=_EVERYWHERE,
  )(chunk, valid, shift, basis)


def _pass(
  features: chunks.Features,
  shift: np.ndarray,
  basis: np.ndarray | None,
  mesh: jax.sharding.Mesh,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and covariance times basis, [d] and [d, l] float64.

  One pass over all rows. The sums of a chunk are float32; those of all chunks
  float64.
  """
  n, d = features.shape
  columns = d if basis is None else basis.shape[1]
  rows, block = chunks.plan(
    features.shape,
    columns,
    mesh,
    in_memory=chunks.shares_memory(features, mesh),
  )
  total, product = np.zeros(d), np.zeros((d, columns))
  for _, valid, chunk in chunks.read(features, rows, mesh):
    sums = _moments(chunk, valid, shift, basis, mesh=mesh, block=block)
    total += np.asarray(sums[0])
    product += np.asarray(sums[1])
  offset = total / n
  known = offset if basis is None else offset @ basis
  return shift + offset, product / n - np.outer(offset, known)


def fit(
  features: chunks.Features | jax.Array,
  size: int,
  key: jax.Array,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> Directions:
  """Returns the whitened first principal components of features.

  Memory does not grow with N. One pass over the features gives mean and
  covariance; above 1,024 dimensions three passes give an approximation (Halko,
  Martinsson and Tropp 2011, algorithms 4.4 and 5.3). Deterministic given the
  key; device counts differ by rounding.

  Args:
    features: float16 or float32 [N, d], finite: an array or a feature bank.
    size: p, the number of directions; at most d.
    key: Random key.
    mesh: Devices to share the rows; None for one.

  Raises:
    EcosError: `features` or `size` are refused; it calls the size `directions`.
  """
  features = chunks.checked(features)
  n, d = features.shape
  if not 1 <= size <= d:
    raise errors.EcosError(
      f"`directions` must lie between 1 and the length of a feature, {d}, got "
      f"{size}"
    )
  mesh = mesh or chunks.single_device_mesh()
  rows_key, basis_key = jax.random.split(key)
  rows = start_lib.subsample(n, min(n, _SHIFT_ROWS), rows_key)
  shift = chunks.take(features, rows).mean(axis=0)
  if d <= _EXACT:
    basis = np.eye(d)
    mean, image = _pass(features, shift, None, mesh)
  else:
    columns = min(d, size + _OVERSAMPLING)
    random = start_lib.generator(basis_key)
    basis = random.standard_normal((d, columns), np.float32)
    mean, image = _pass(features, shift, basis, mesh)
    for _ in range(_POWERS):
      basis = np.linalg.qr(image)[0].astype(np.float32)
      _, image = _pass(features, shift, basis, mesh)
  if not np.isfinite(image).all():
    raise errors.EcosError(
      "`features` hold NaN, infinite or too large numbers: no directions"
    )
  # The covariance within the basis, whose columns are orthonormal.
  within = basis.T @ image
  variances, vectors = np.linalg.eigh((within + within.T) / 2)
  order = np.argsort(-variances, kind="stable")[:size]
  if variances[order[0]] <= 0:
    raise errors.EcosError("`features` are all the same: no directions")
  variances = np.maximum(
    variances[order], _LEAST_VARIANCE * variances[order[0]]
  )
  axes = (basis @ vectors[:, order] / np.sqrt(variances)).T
  # The sign of an eigenvector is arbitrary: its largest number is positive.
  largest = np.abs(axes).argmax(axis=1)
  axes *= np.sign(axes[np.arange(size), largest])[:, None]
  # One power of two for all changes no vote, and float16 holds the result.
  axes = np.ldexp(axes, -math.frexp(np.abs(axes).max())[1])
  axes = np.ascontiguousarray(axes, np.float16).astype(np.float32)
  return Directions(axes, mean.astype(np.float32))


@jax.jit
def coordinates(
  features: jax.typing.ArrayLike,
  axes: jax.typing.ArrayLike,
  mean: jax.typing.ArrayLike,
) -> jax.Array:
  """Returns the coordinates of samples, float32 [n, p].

  Args:
    features: float32 [n, d].
    axes: float32 [p, d].
    mean: float32 [d].
  """
  centered = jnp.asarray(features) - mean
  return jnp.dot(centered, jnp.asarray(axes).T, precision=_HIGHEST)


@functools.partial(jax.jit, static_argnames=("count",))
def votes(
  features: jax.typing.ArrayLike,
  axes: jax.typing.ArrayLike,
  mean: jax.typing.ArrayLike,
  count: int,
) -> jax.Array:
  """Returns the signed votes of samples of the pool, float32 [n, p].

  As `client.coverage.signs`, but in float32: equal coordinates may all vote.

  Args:
    features: float32 [n, d].
    axes: float32 [p, d].
    mean: float32 [d].
    count: m, from 1 to p.
  """
  z = coordinates(features, axes, mean)
  size = jnp.abs(z)
  least = jax.lax.top_k(size, count)[0][:, -1:]
  return jnp.where(size >= least, jnp.sign(z), 0)


class Counts(NamedTuple):
  """What a client was asked about clusters, beside directions.

  Attributes:
    scores: [R], noisy counts of its samples in each cluster.
    sigma: Scale of the noise in each.
    assignment: int32 [N], the cluster of each sample of the pool; -1: in none.
    sizes: int64 [R], samples of the pool in each cluster.
  """

  scores: np.ndarray
  sigma: float
  assignment: np.ndarray
  sizes: np.ndarray


class Density(NamedTuple):
  """The client's density over the pool's: exp(v . tilt + level - offset).

  Here v are the signed votes of a sample, and level is that of its cluster.

  Attributes:
    directions: What the client voted on.
    votes: m, the votes of a sample.
    tilt: float64 [p].
    offset: Makes the mean over the pool 1.
    levels: float64 [R]; None if the client was not asked about clusters.
  """

  directions: Directions
  votes: int
  tilt: np.ndarray
  offset: float
  levels: np.ndarray | None = None

  def log_at(self, features: np.ndarray | jax.Array) -> np.ndarray:
    """Returns the logarithm of the density, float64 [n], without the level.

    Args:
      features: float32 [n, d].
    """
    cast = votes(features, *self.directions, self.votes)
    return np.asarray(cast) @ self.tilt - self.offset

  def in_clusters(
    self, features: chunks.Features, assignment: np.ndarray, size: int
  ) -> np.ndarray:
    """Returns the sum of the densities in each cluster, float64 [size].

    Up to a factor these are the client's votes. Memory does not grow with N.

    Args:
      features: [N, d], the pool.
      assignment: int32 [N], the cluster of each sample; -1: in none.
      size: Number of clusters.
    """
    mesh = chunks.single_device_mesh()
    rows, _ = chunks.plan(features.shape, len(self.tilt), mesh)
    result = np.zeros(size)
    for start, valid, chunk in chunks.read(features, rows, mesh):
      values = np.exp(self.log_at(chunk.astype(jnp.float32))[:valid])
      labels = np.asarray(assignment[start : start + valid])
      known = labels >= 0
      result += np.bincount(labels[known], values[known], size)
    return result if self.levels is None else result * np.exp(self.levels)


def sample(n: int, key: jax.Array) -> np.ndarray:
  """Returns random rows that stand for all n, sorted; 32,768 at most."""
  return start_lib.subsample(n, min(n, _FITTED_ROWS), key)


def density(
  features: chunks.Features,
  directions: Directions,
  votes_of_sample: int,
  sums: np.ndarray,
  scale: float,
  key: jax.Array,
  counts: Counts | None = None,
) -> Density:
  """Returns the client's density over the pool's, from noisy sums of votes.

  Of all densities over the pool with the client's mean votes mu it is the one
  of maximum entropy, exp(tilt . v), where the tilt is drawn to zero as far as
  noise explains it:

      maximise  tilt . mu - log mean_i exp(tilt . v_i) - rho |tilt|^2 / 2

  over the samples i of the pool, with rho = t^2 c / max(mean(g^2) - t^2,
  t^2 / 1000): t is the noise of a mean vote, c the mean variance of the pool's
  votes, and g the gap of mu to the pool's own mean votes (Altun and Smola,
  COLT 2006: maximum entropy under a tolerance of the moments).

  With counts of clusters, the level of each cluster is one more number of the
  tilt, and its count over the number of voters one more mean. The rho of a
  cluster that holds the share f of the pool is t^2 / (2 f), t the noise of that
  mean: the levels have the variance 2 before the answer is known.

  Args:
    features: [N, d], the pool; a random sample of it stands for all.
    directions: What the client voted on.
    votes_of_sample: m.
    sums: int64 [p + 1], noisy sums of votes, and the noisy number of voters.
    scale: Scale of the noise in each number.
    key: Random key, of the sample.
    counts: The client's answer about clusters, if it was asked.
  """
  rows = sample(features.shape[0], key)
  cast = votes(chunks.take(features, rows), *directions, votes_of_sample)
  pool = np.asarray(cast).astype(np.float64)
  # Fewer voters than this are lost in the noise, whatever they voted.
  voters = max(float(sums[-1]), scale, 1.0)
  mean = pool.mean(axis=0)
  gap = sums[:-1] / voters - mean
  noise = (scale / voters) ** 2
  signal = max(np.mean(gap**2) - noise, noise / 1000)
  ridge = noise * pool.var(axis=0).mean() / signal
  within = target = ridges = None
  if counts is not None:
    labels = np.asarray(counts.assignment[rows])
    known = np.flatnonzero(labels >= 0)
    within = sparse.csr_array(
      (np.ones(len(known)), (labels[known], known)),
      (len(counts.sizes), len(rows)),
    )
    shares = np.maximum(counts.sizes, 1) / features.shape[0]
    # As with votes: the gap to the whole pool, from the mean of the sample.
    target = within.mean(axis=1) + counts.scores / voters - shares
    ridges = (counts.sigma / voters) ** 2 / (_LEVEL_VARIANCE * shares)
  return Density(
    directions,
    votes_of_sample,
    *_maximum_entropy(pool, mean + gap, ridge, within, target, ridges),
  )


def _log_mean_exp(values: np.ndarray) -> float:
  most = values.max()
  return float(most) + math.log(np.mean(np.exp(values - most)))


def _maximum_entropy(
  rows: np.ndarray,
  mean: np.ndarray,
  ridge: float,
  within: sparse.csr_array | None = None,
  target: np.ndarray | None = None,
  ridges: np.ndarray | None = None,
) -> tuple[np.ndarray, float, np.ndarray | None]:
  """Returns the maximum of the formula of `density`: tilt, offset and levels.

  By Newton's method: the function is concave. Each sample is in one cluster at
  most, so that the levels have a diagonal curvature, and are eliminated.

  Args:
    rows: float64 [n, p], the votes.
    mean: float64 [p], of the client's votes.
    ridge: rho, positive.
    within: [R, n], 1 where a sample is in a cluster; None: no clusters.
    target: float64 [R], shares of the clusters.
    ridges: float64 [R], rho of the clusters, positive.
  """
  n, p = rows.shape
  if within is None or target is None or ridges is None:
    within = sparse.csr_array((0, n))
    target = ridges = np.zeros(0)
  aim = np.concatenate([mean, target])
  damping = np.concatenate([np.full(p, ridge), ridges])

  def logs(point: np.ndarray) -> np.ndarray:
    return rows @ point[:p] + within.T @ point[p:]

  def value(point: np.ndarray) -> float:
    return float(point @ (aim - damping * point / 2)) - _log_mean_exp(
      logs(point)
    )

  point = np.zeros(len(aim))
  reached = value(point)
  for _ in range(_NEWTON_STEPS):
    weights = logs(point)
    weights = np.exp(weights - weights.max())
    weights /= weights.sum()
    weighted = rows * weights[:, None]
    here = np.concatenate([weights @ rows, within @ weights])
    slope = aim - here - damping * point
    # The curvature is [[a, b^T], [b, diagonal]] - here here^T.
    a, b = weighted.T @ rows + ridge * np.eye(p), within @ weighted
    diagonal = here[p:] + ridges
    right = np.stack([slope, here], axis=1)
    eliminated = b / diagonal[:, None]
    top = np.linalg.solve(
      a - b.T @ eliminated, right[:p] - eliminated.T @ right[p:]
    )
    solved = np.concatenate([top, (right[p:] - b @ top) / diagonal[:, None]])
    # Sherman and Morrison's formula.
    factor = (here @ solved[:, 0]) / (1 - here @ solved[:, 1])
    step = solved[:, 0] + factor * solved[:, 1]
    # Half of it is what the value would gain if it were a parabola.
    gain = slope @ step
    if gain < _LEAST_GAIN:
      break
    while (following := value(point + step)) <= reached and gain > _LEAST_GAIN:
      step, gain = step / 2, gain / 2
    point, reached = point + step, following
  levels = point[p:] if len(target) else None
  return point[:p], _log_mean_exp(logs(point)), levels

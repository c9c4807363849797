"""The client's density over the pool's, from its noisy votes.

It is known at every sample of the pool, and not only for every cluster.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from ecos_jax.cloud import directions as directions_lib
from ecos_jax.cloud import worth
from ecos_jax.clustering import chunks

_NEWTON_STEPS = 20
_LEAST_GAIN = 1e-9
# The largest gradient, in mean votes, where Newton's method has converged.
_MOST_ERROR = 1e-3
# A smaller rho drowns in the rounding errors of the curvature. Only answers of
# millions of samples, and forged ones, have so little noise.
_LEAST_RIDGE = 1e-9
# A density that rests on fewer samples of the pool says nothing of the client.
_SAMPLES_PER_DIRECTION = 2
_STRICTER = 4.0
# Answers that somebody forged take up to 46.
_MOST_FITS = 64
# The largest log density of a sample: sums of such densities are finite.
_MOST_LOG = 600.0
# Prior variance of a cluster's log density, beyond what the directions say.
_LEVEL_VARIANCE = 2.0


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
    means: The mean votes that it is fitted to, and the client's shares of the
      clusters if it was asked about these.
    levels: float64 [R]; None if the client was not asked about clusters.
  """

  directions: directions_lib.Directions
  votes: int
  tilt: np.ndarray
  offset: float
  means: worth.Means
  levels: np.ndarray | None = None

  def cast(self, features: np.ndarray | jax.Array) -> np.ndarray:
    """Returns the votes of samples, float32 [n, p].

    Args:
      features: float32 [n, d].
    """
    return directions_lib.votes(features, *self.directions, self.votes)

  def without(self, offset: np.ndarray) -> "Density":
    """Returns the same density for features minus an offset, float32 [d]."""
    axes, mean = self.directions
    directions = directions_lib.Directions(axes, mean - offset)
    return self._replace(directions=directions)

  def log_at(self, features: np.ndarray | jax.Array) -> np.ndarray:
    """Returns the logarithm of the density, float64 [n], without the level.

    Args:
      features: float32 [n, d].
    """
    # Not by a BLAS, whose threads wait for one another on a busy machine.
    return np.einsum("np,p->n", self.cast(features), self.tilt) - self.offset

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
      logs = self.log_at(chunk.astype(jnp.float32))[:valid]
      labels = np.asarray(assignment[start : start + valid])
      known = labels >= 0
      logs, labels = logs[known], labels[known]
      # Either alone may be too large for exp.
      if self.levels is not None:
        logs = logs + self.levels[labels]
      values = np.exp(np.minimum(logs, _MOST_LOG))
      result += np.bincount(labels, values, size)
    return result


def fit(
  features: chunks.Features,
  directions: directions_lib.Directions,
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
  rows = directions_lib.sample(features.shape[0], key)
  cast = directions_lib.votes(
    chunks.take(features, rows), *directions, votes_of_sample
  )
  pool = cast.astype(np.float64)
  # Fewer voters than this are lost in the noise, whatever they voted.
  voters = max(float(sums[-1]), scale, 1.0)
  mean = pool.mean(axis=0)
  gap = sums[:-1] / voters - mean
  noise = (scale / voters) ** 2
  signal = max(np.mean(gap**2) - noise, noise / 1000)
  ridge = max(noise * pool.var(axis=0).mean() / signal, _LEAST_RIDGE)
  chance = np.sqrt(noise + pool.var(axis=0) / voters)
  means = worth.Means(mean + gap, mean, chance)
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
    ridges = np.maximum(ridges, _LEAST_RIDGE)
    means = means.and_those(
      worth.Means.of_counts(counts.scores, counts.sizes, counts.sigma, voters)
    )
  tilt, offset, levels = _on_many_samples(
    pool, mean + gap, ridge, within, target, ridges
  )
  return Density(directions, votes_of_sample, tilt, offset, means, levels)


def _on_many_samples(
  rows: np.ndarray,
  mean: np.ndarray,
  ridge: float,
  within: sparse.csr_array | None,
  target: np.ndarray | None,
  ridges: np.ndarray | None,
) -> tuple[np.ndarray, float, np.ndarray | None]:
  """Returns `_maximum_entropy` of its arguments, with a rho that suffices.

  The client's samples may be unlike all of the pool. No density has their mean
  votes then, and the maximum is at a few samples, or one, or Newton's method
  does not find it. So every rho is made 4 times as large until the method has
  converged and the density rests on 2 p samples or more, (sum of r)^2 / (sum of
  r^2), or a twentieth of those that stand for the pool.
  """
  least = min(_SAMPLES_PER_DIRECTION * rows.shape[1], len(rows) / 20)
  for _ in range(_MOST_FITS):
    tilt, offset, levels, converged = _maximum_entropy(
      rows, mean, ridge, within, target, ridges
    )
    logs = rows @ tilt
    if levels is not None and within is not None:
      logs += within.T @ levels
    weights = np.exp(logs - logs.max())
    if converged and weights.sum() ** 2 >= least * (weights**2).sum():
      return tilt, offset, levels
    ridge *= _STRICTER
    ridges = None if ridges is None else ridges * _STRICTER
  # Every rho is so large that the density is the pool's.
  return np.zeros_like(mean), 0.0, None if target is None else 0 * target


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
) -> tuple[np.ndarray, float, np.ndarray | None, bool]:
  """Returns the maximum of the formula of `fit`: tilt, offset and levels.

  The last value says whether the method has converged.

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
    here = np.concatenate([weights @ rows, within @ weights])
    slope = aim - here - damping * point
    # The curvature is [[a, b^T], [b, diagonal]] - shares shares^T. It is that
    # of the votes minus their mean, else a would be a small difference.
    centred = rows - here[:p]
    weighted = centred * weights[:, None]
    a, b = weighted.T @ centred + ridge * np.eye(p), within @ weighted
    diagonal = here[p:] + ridges
    shares = np.concatenate([np.zeros(p), here[p:]])
    right = np.stack([slope, shares], axis=1)
    eliminated = b / diagonal[:, None]
    top = np.linalg.solve(
      a - b.T @ eliminated, right[:p] - eliminated.T @ right[p:]
    )
    solved = np.concatenate([top, (right[p:] - b @ top) / diagonal[:, None]])
    # Sherman and Morrison's formula.
    factor = (shares @ solved[:, 0]) / (1 - shares @ solved[:, 1])
    step = solved[:, 0] + factor * solved[:, 1]
    # Half of it is what the value would gain if it were a parabola.
    gain = slope @ step
    if gain < _LEAST_GAIN:
      break
    while (following := value(point + step)) <= reached and gain > _LEAST_GAIN:
      step, gain = step / 2, gain / 2
    point, reached = point + step, following
  levels = point[p:] if len(target) else None
  most = _MOST_ERROR * max(1.0, np.abs(aim).max())
  converged = bool(np.abs(slope).max() <= most)
  return point[:p], _log_mean_exp(logs(point)), levels, converged

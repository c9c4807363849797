"""Estimates the number of votes of each cluster from noisy scores.

A score is a count of votes plus discrete Gaussian noise of known scale. The
estimate post-processes the answer, so it costs no privacy, and takes O(R).

It is empirical Bayes. The model of the score s_r of a cluster of n_r samples is

    s_r | q_r ~ Normal(q_r n_r, sigma^2),    q_r ~ G,

where q_r is the client's density over the pool's, up to a factor. G, any
distribution on [0, oo), is fitted to all scores by maximum likelihood (Kiefer
and Wolfowitz 1956), on a grid, by EM (Laird 1978; Jiang and Zhang, Annals of
Statistics 2009). The estimate of the votes is n_r E[q_r | s_r]. If many
clusters have no votes, G puts mass near 0, and scores that noise can explain
shrink to almost nothing: no threshold is needed.
"""

import numpy as np

from ecos_jax import config
from ecos_jax import errors

_GRID = 256
_ITERATIONS = 200
# G is fitted to at most so many clusters; more would change little.
_FITTED = 4096
_LEAST = 1e-15
# The covered clusters have this share of the votes.
_COVERED = 0.95


def _kept(
  scores: np.ndarray, sigma: float, options: config.Sampling
) -> np.ndarray:
  """Returns which clusters the filter leaves, bool [R]."""
  if options.filter is config.Filter.NONE:
    return np.ones(len(scores), np.bool_)
  kept = (scores >= options.threshold * sigma) & (scores > 0)
  if not kept.any():
    raise errors.EcosError(
      f"no score passes `sampling.threshold`={options.threshold:g} at sigma "
      f"{sigma:g} (the highest is {scores.max()}): lower it, lower "
      "`privacy.sigma`, or ask a client with more samples"
    )
  return kept


def _grid(scores: np.ndarray, sizes: np.ndarray, sigma: float) -> np.ndarray:
  """Returns the grid of G: 0, and densities from below the noise upwards."""
  low = sigma / (8 * sizes.max())
  high = max((scores / sizes).max(), 2 * low)
  return np.append(0.0, np.geomspace(low, high, _GRID - 1))


def posterior_mean(
  scores: np.ndarray, sizes: np.ndarray, sigma: float
) -> np.ndarray:
  """Returns the posterior mean of each cluster's votes, float64 [R], >= 0.

  Args:
    scores: int64 [R], noisy.
    sizes: int64 [R], samples of the pool in each cluster.
    sigma: Scale of the noise in a score.
  """
  sizes = np.maximum(sizes, 1)
  grid = _grid(scores, sizes, sigma)

  def likelihood(rows):
    gaps = scores[rows, None] - sizes[rows, None] * grid
    logs = -0.5 * (gaps / sigma) ** 2
    return np.exp(logs - logs.max(axis=1, keepdims=True))

  fitted = likelihood(slice(None, None, -(-len(scores) // _FITTED)))
  prior = np.full(_GRID, 1 / _GRID)
  for _ in range(_ITERATIONS):
    # The mean of the posteriors of all clusters.
    prior = prior * (fitted.T @ (1 / (fitted @ prior))) / len(fitted)
  # A score unlike all that G was fitted to must not result in 0 / 0.
  prior += _LEAST
  result = np.empty(len(scores))
  for start in range(0, len(scores), _FITTED):
    rows = slice(start, start + _FITTED)
    mass = likelihood(rows) * prior
    result[rows] = mass @ grid / mass.sum(axis=1)
  return result * sizes


def votes(
  scores: np.ndarray, sizes: np.ndarray, sigma: float, options: config.Sampling
) -> np.ndarray:
  """Returns the estimated number of votes of each cluster, float64 [R], >= 0.

  Args:
    scores: int64 [R], noisy.
    sizes: int64 [R], samples of the pool in each cluster.
    sigma: Scale of the noise in a score.
    options: `estimate`, and `filter`: clusters that it drops have no votes.
      `threshold` keeps positive scores of `threshold` times sigma or more.

  Raises:
    EcosError: The filter leaves no cluster.
  """
  kept = _kept(scores, sigma, options)
  if options.estimate is config.Estimate.POSTERIOR:
    scores = posterior_mean(scores, sizes, sigma)
  return np.where(kept, np.maximum(scores, 0.0), 0.0)


def covered(votes: np.ndarray, sizes: np.ndarray, rows: int = 1) -> np.ndarray:
  """Returns the clusters where the client's samples lie, bool [R].

  These are the densest that have 95 % of the votes, and the next densest until
  they have `rows` samples.

  Args:
    votes: float64 [R], the estimated votes of each cluster.
    sizes: int64 [R], samples of the pool in each cluster.
    rows: Number of samples that they must have; at most the sum of the sizes.
  """
  order = np.argsort(-density(votes, sizes), kind="stable")
  held, members = np.cumsum(votes[order]), np.cumsum(sizes[order])
  count = max(
    np.searchsorted(held, _COVERED * held[-1]), np.searchsorted(members, rows)
  )
  return np.isin(np.arange(len(votes)), order[: count + 1])


def density(votes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """Returns votes / sizes, float64 [R]: the client's density over the pool's.

  Up to a factor, this is the share of a cluster that is of the client's domain.

  Args:
    votes: float64 [R], from `votes`.
    sizes: int64 [R], samples of the pool in each cluster.
  """
  return votes / np.maximum(sizes, 1)

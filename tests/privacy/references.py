"""The privacy loss of noisy counts, straight from the definitions."""

import numpy as np

from ecos_jax import config


def noise(sigma, gamma, bins=1):
  """Returns p0 and m on one grid of integers, straight from the definition."""
  x = np.arange(-int(12 * sigma) - 9, int(12 * sigma) + 10)
  p0 = np.exp(-(x**2) / (2 * sigma**2))
  p1 = np.exp(-((x - bins) ** 2) / (2 * sigma**2))
  total = p0.sum()
  return p0 / total, ((1 - gamma) * p0 + gamma * p1) / total


def votes(sigma, gamma):
  """Returns p0 and m of two counts, one that rises and one that falls by one.

  The loss depends on their difference alone.
  """
  up, _ = noise(sigma, 0.0)
  both = np.convolve(up, up)
  both = both[both > 1e-300]
  p0 = np.append(both, [0.0, 0.0])
  p1 = np.append([0.0, 0.0], both)
  inside = (p0 > 0) & (p1 > 0)
  return p0[inside], ((1 - gamma) * p0 + gamma * p1)[inside]


def delta(sigma, gamma, epsilon, relation):
  """Returns the hockey-stick divergence, summed over all outputs."""
  p0, m = noise(sigma, gamma)
  grow = np.exp(epsilon)
  if relation == config.Relation.ADD_REMOVE.value:
    remove = np.maximum(m - grow * p0, 0).sum()
    return max(remove, np.maximum(p0 - grow * m, 0).sum())
  # The counts of both bins: (m, p0) against (p0, m).
  total = 0.0
  for v in range(len(p0)):
    total += np.maximum(m * p0[v] - grow * p0 * m[v], 0).sum()
  return total

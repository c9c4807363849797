"""What an answer is worth: how much of it is signal, and what the proxy gains.

Everything is estimated from the answer alone, so it costs no privacy.
"""

from typing import NamedTuple

import numpy as np

# Noise alone gives more in one of about 300 answers.
_DEVIATIONS = 3.0
# A proxy that is nearer by less is hardly better than a random one.
_NEARER = 0.2


class Means(NamedTuple):
  """The client's mean votes, as its answer tells them.

  Attributes:
    values: float64 [n], noisy.
    pool: float64 [n], those of the pool, which are known.
    chance: float64 [n], the standard deviation of each value: that of the
      noise, and of the choice of the client's samples.
  """

  values: np.ndarray
  pool: np.ndarray
  chance: np.ndarray

  @classmethod
  def of_counts(
    cls, scores: np.ndarray, sizes: np.ndarray, sigma: float, voters: float
  ) -> "Means":
    """Returns the client's shares of the clusters, and the pool's.

    Args:
      scores: [R], noisy.
      sizes: int64 [R], samples of the pool in each cluster.
      sigma: Scale of the noise in a score.
      voters: How many samples voted, positive.
    """
    shares = sizes / sizes.sum()
    variance = (sigma / voters) ** 2 + shares * (1 - shares) / voters
    return cls(scores / voters, shares, np.sqrt(variance))

  def and_those(self, others: "Means") -> "Means":
    """Returns these means and others together."""
    return Means(*map(np.concatenate, zip(self, others, strict=True)))

  def squared_distance(self, means: np.ndarray) -> float:
    """Returns the squared distance to mean votes [n], in units of `chance`."""
    return float(np.sum(((self.values - means) / self.chance) ** 2))


class Worth(NamedTuple):
  """What an answer was worth.

  Attributes:
    signal: Share of the squared distance between the client's mean votes, as
      answered, and the pool's that chance does not explain; 0 to 1.
    deviations: How far this distance is above what chance alone gives, in
      standard deviations.
    nearer: The least share of it that the proxy takes away: its mean votes are
      nearer to the client's by so much than those of a random proxy. 0 where
      the answer does not tell.
    nearer_at_most: The largest share of it that the proxy takes away, in
      expectation. 1 where the answer does not tell.
  """

  signal: float
  deviations: float
  nearer: float
  nearer_at_most: float

  @property
  def may_be_noise(self) -> bool:
    """Whether chance alone could well have given this answer."""
    return self.deviations < _DEVIATIONS

  @property
  def tells_of_no_gain(self) -> bool:
    """Whether the answer is clear, and the proxy hardly nearer to it."""
    return not self.may_be_noise and self.nearer_at_most < _NEARER


def estimate(means: Means, proxy: np.ndarray) -> Worth:
  """Returns what an answer was worth.

  With n numbers, chance alone gives a squared distance of n, with the standard
  deviation (2 n)^(1/2); to a true distance of t it adds n, with the deviation
  (2 n + 4 t)^(1/2), and `nearer` takes off two of these. The distance between
  answer and proxy is n too large if the proxy is independent of the answer's
  noise. It is up to n too small if the proxy follows that noise: `nearer` takes
  this case, and `nearer_at_most` the other.

  Args:
    means: The client's mean votes.
    proxy: float64 [n], the mean votes of the proxy.
  """
  n = len(proxy)
  random = means.squared_distance(means.pool)
  excess = random - n
  signal = max(excess, 0.0) / max(random, n)
  nearer, least = 0.0, excess - 2 * (2 * n + 4 * max(excess, 0.0)) ** 0.5
  at_most, left = 1.0, means.squared_distance(proxy)
  if excess > 0:
    at_most = min(max((random - left) / excess, 0.0), 1.0)
  if least > 0:
    nearer = max(1 - (left + n) / least, 0.0)
  return Worth(signal, excess / (2 * n) ** 0.5, nearer, at_most)

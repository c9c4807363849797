"""A map of the bank in two dimensions, from a sample of its rows.

Principal components: the plane with the largest share of the variance. Samples
far apart on it are far apart; near ones may still differ. Rows are read at
random places, so a map costs the same for a bank of any size.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

from ecos_jax import workdir
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.report import collect

ROWS = 2000
PROXY_ROWS = 1000
_SEED = 0


class Projection(NamedTuple):
  """The places of samples on a map.

  Attributes:
    pool: float [m, 2], samples of the pool.
    pool_sources: [m], their sources, as positions in the pool.
    proxy: float [b, 2], samples of the proxy; b = 0 without one.
    proxy_sources: [b], their sources.
    centroids: float [R, 2]; R = 0 without a codebook.
    share: Share of the variance on the plane, 0 to 1.
  """

  pool: np.ndarray
  pool_sources: np.ndarray
  proxy: np.ndarray
  proxy_sources: np.ndarray
  centroids: np.ndarray
  share: float


def plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns mean [d], two directions [2, d] and their share of the variance.

  The directions are the first principal components, each with its largest
  entry positive; zero where there is no variance left.

  Args:
    features: float [m, d].
  """
  mean = features.mean(0, dtype=np.float64)
  centred = features - mean
  rows, dimension = centred.shape
  # The smaller of the two Gram matrices has the same spectrum.
  small = centred.T @ centred if dimension <= rows else centred @ centred.T
  last = len(small) - 1
  values, vectors = map(
    np.asarray,
    scipy.linalg.eigh(small, subset_by_index=[max(last - 1, 0), last]),
  )
  directions = np.zeros((2, dimension))
  total = np.trace(small)
  for i, value in enumerate(values[::-1]):
    if value > 1e-12 * total:
      vector = vectors[:, -1 - i]
      if dimension > rows:
        vector = centred.T @ vector / np.sqrt(value)
      directions[i] = vector * np.sign(vector[np.abs(vector).argmax()])
  share = float(values.sum() / total) if total else 0.0
  return mean, directions, share


def project(run: collect.Run) -> Projection | None:
  """Returns the map of a run's bank; None if the run has no bank.

  Raises:
    EcosError: The bank is damaged.
  """
  if "bank" not in run.stages:
    return None
  folder = run.path / "bank"
  with workdir.redo_named(folder):
    bank = bank_lib.FeatureBank.open(folder, run.result("bank")["digest"])
  random = np.random.default_rng(_SEED)
  pool = sample(random, bank.shape[0], ROWS)
  features = bank.take(pool)
  mean, directions, share = plane(features)

  def onto(rows: np.ndarray) -> np.ndarray:
    return (rows - mean) @ directions.T

  proxy = np.empty(0, np.int64)
  if run.chosen is not None:
    proxy = run.chosen[sample(random, len(run.chosen), PROXY_ROWS)]
  centroids = np.empty((0, bank.shape[1]))
  if run.clusters is not None:
    centroids = run.clusters.centroids
  return Projection(
    onto(features),
    collect.source_of(run.sources, pool),
    onto(bank.take(proxy)),
    collect.source_of(run.sources, proxy),
    onto(centroids),
    share,
  )


def sample(random: np.random.Generator, n: int, most: int) -> np.ndarray:
  """Returns at most `most` of 0..n-1, in order, without an array of n."""
  return np.sort(random.choice(n, min(n, most), replace=False, shuffle=False))

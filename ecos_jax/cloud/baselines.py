"""Other ways to choose a proxy from the pool, to compare ECOS with."""

import jax
import numpy as np

from ecos_jax import errors
from ecos_jax.cloud import sampling
from ecos_jax.clustering import assign
from ecos_jax.clustering import centring
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import start as start_lib

_CANDIDATES_PER_SAMPLE = 8
_MIN_CANDIDATES = 65536
_MAK_CLUSTERS = 10
_MAK_CANDIDATES = 1.5


def _check_budget(budget: int, n: int) -> None:
  if not 1 <= budget <= n:
    raise errors.EcosError(
      f"`budget` must lie between 1 and the size of the pool, {n}, got {budget}"
    )


def _k_center(
  features: np.ndarray, nearest: np.ndarray, start: int, budget: int
) -> np.ndarray:
  features = features - centring.offset(features)
  order = sampling.farthest_first(
    features[None],
    nearest[None],
    np.array([start], np.int32),
    np.int32(budget),
  )
  return np.flatnonzero(np.asarray(order)[0] < budget)


def random(n: int, budget: int, key: jax.Array) -> np.ndarray:
  """Returns a uniform sample of the pool, int64 [B], sorted.

  Args:
    n: Size of the pool.
    budget: B.
    key: Random key.

  Raises:
    EcosError: The budget does not lie in 1..n.
  """
  _check_budget(budget, n)
  return start_lib.subsample(n, budget, key)


def kcenter(bank: chunks.Features, budget: int, key: jax.Array) -> np.ndarray:
  """Returns k-center greedy of the pool, int64 [B], sorted.

  It begins with a random sample and always adds the one farthest from all
  chosen (Sener and Savarese 2018, algorithm 1). It knows nothing of the client.
  If the pool has more than max(65,536, 8 B) samples, it chooses from that many
  random ones.

  Args:
    bank: Features, [N, d].
    budget: B.
    key: Random key.

  Raises:
    EcosError: The budget does not lie in 1..N.
  """
  n = bank.shape[0]
  _check_budget(budget, n)
  limit = min(n, max(_CANDIDATES_PER_SAMPLE * budget, _MIN_CANDIDATES))
  sample_key, start_key = jax.random.split(key)
  rows = start_lib.subsample(n, limit, sample_key)
  start = int(start_lib.generator(start_key).integers(limit))
  nearest = np.full(limit, np.inf, np.float32)
  return rows[_k_center(chunks.take(bank, rows), nearest, start, budget)]


def mak(
  bank: chunks.Features,
  client_features: np.ndarray,
  budget: int,
  key: jax.Array,
) -> np.ndarray:
  """Returns the choice of MAK, which sees the client's features: NOT PRIVATE.

  For simulation only, as an upper baseline (MAK, NeurIPS 2021). The candidates
  are the 1.5 B samples nearest to 10 means of the client's features. Of these
  it chooses by k-center greedy, as if the client's features were chosen before.

  Args:
    bank: Features, [N, d].
    client_features: float32 [n, d], private.
    budget: B.
    key: Random key.

  Returns:
    int64 [B], sorted.

  Raises:
    EcosError: The budget does not lie in 1..N.
  """
  n = bank.shape[0]
  _check_budget(budget, n)
  clusters = min(_MAK_CLUSTERS, len(client_features))
  means = kmeans.fit(client_features, clusters, key).centroids
  parts = [part.distances for _, part in assign.stream(bank, means)]
  distances = np.concatenate(parts)
  count = min(n, int(_MAK_CANDIDATES * budget))
  rows = np.sort(np.argsort(distances, kind="stable")[:count])
  features = chunks.take(bank, rows)
  nearest = np.asarray(assign.assign(features, client_features).distances)
  return rows[_k_center(features, nearest, int(np.argmax(nearest)), budget)]

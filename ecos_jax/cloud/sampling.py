"""From noisy scores to the proxy: filter, quotas, samples inside clusters.

A response tells how many of the client's samples lie near each centroid.
Clusters of low score are dropped, the budget is spread over the others in
proportion to the scores, and each cluster gives its quota of samples that cover
it without redundancy (ECOS, algorithm 1; the rules are ours). All of it
post-processes the response, and costs no privacy.

Of a large cluster only random candidates are looked at: 8 to 16 times its quota
and at least 4,096, so that the work is bounded, whatever the pool.
"""

from collections.abc import Iterator
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ecos_jax import config
from ecos_jax import errors
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.clustering import assign
from ecos_jax.clustering import start as start_lib

_CANDIDATES_PER_SAMPLE = 8
_MIN_CANDIDATES = 4096
# Rows of the assignment looked at together, and candidates worked on together.
_SCAN_ROWS = 1 << 22
_GROUP_ROWS = 1 << 15
_MIN_WIDTH = 64


def keep(scores: np.ndarray, sigma: float, threshold: float) -> np.ndarray:
  """Returns which clusters have a score that noise does not explain, bool [R].

  Args:
    scores: int64 [R], noisy.
    sigma: Standard deviation of the noise in a score.
    threshold: How many sigma a score must reach; it must be positive, too.

  Raises:
    EcosError: No cluster is left.
  """
  kept = (scores >= threshold * sigma) & (scores > 0)
  if not kept.any():
    raise errors.EcosError(
      f"no score reaches {threshold:g} x sigma = {threshold * sigma:g} (the "
      f"highest is {scores.max()}): lower --config.sampling.threshold or "
      "--config.privacy.sigma, or ask clients with more samples"
    )
  return kept


def quotas(
  scores: np.ndarray, sizes: np.ndarray, kept: np.ndarray, budget: int
) -> np.ndarray:
  """Returns how many samples to take from each cluster, int64 [R].

  In proportion to the score; a cluster that is too small gives all it has, and
  the others share the rest in proportion. Fractions are settled by largest
  remainder, equal ones in order of index. Exact: the sum is `budget`, or the
  size of the kept clusters together if that is less.

    >>> scores, sizes = np.array([60, 30, 10]), np.array([20, 500, 500])
    >>> quotas(scores, sizes, keep(scores, sigma=5, threshold=1), 100)
    array([20, 60, 20])

  Args:
    scores: int64 [R], positive where kept.
    sizes: int64 [R], samples in each cluster.
    kept: bool [R].
    budget: Number of samples to choose.

  Raises:
    EcosError: The budget is not positive.
  """
  if budget < 1:
    raise errors.EcosError(f"--config.sampling.budget={budget}: it must be > 0")
  # Python integers: products of counts overflow int64 in huge pools.
  clusters = [
    (int(scores[r]), int(sizes[r]), int(r)) for r in np.flatnonzero(kept)
  ]
  if any(score <= 0 for score, _, _ in clusters):
    raise ValueError("kept clusters must have positive scores")
  result = np.zeros(len(scores), np.int64)
  left = budget
  total = sum(score for score, _, _ in clusters)
  # The smallest size per score fills up first.
  clusters.sort(
    key=functools.cmp_to_key(lambda a, b: a[1] * b[0] - b[1] * a[0])
  )
  full = 0
  for score, size, r in clusters:
    if left * score < size * total:
      break
    result[r] = size
    left -= size
    total -= score
    full += 1
  shares = [
    (*divmod(left * score, total), r) for score, _, r in clusters[full:]
  ]
  for whole, _, r in shares:
    result[r] = whole
  shares.sort(key=lambda share: (-share[1], share[2]))
  for _, _, r in shares[: left - sum(whole for whole, _, _ in shares)]:
    result[r] += 1
  return result


@jax.jit
def farthest_first(
  features: jax.Array, nearest: jax.Array, start: jax.Array, steps: jax.Array
) -> jax.Array:
  """Returns the order of k-center greedy in many sets at once, int32 [g, m].

  Each step adds to every set the sample farthest from those chosen there
  (Gonzalez 1985); ties go to the lowest index. All sets advance together, one
  pass over the features a step.

  Args:
    features: float32 [g, m, d], g sets of m samples.
    nearest: float32 [g, m], squared distance to what was chosen before;
      infinity if nothing was, minus infinity for padding: never chosen.
    start: int32 [g], the sample that each set begins with.
    steps: int32, how many samples to choose from each set.

  Returns:
    The step at which each sample was chosen; `steps` or more if it was not.
  """
  sets = jnp.arange(len(features))
  norms = jnp.sum(features * features, axis=2)

  def step(i, carry):
    order, nearest, chosen = carry
    # Sets that are used up choose again what has an earlier place.
    order = order.at[sets, chosen].min(i)
    products = jnp.einsum(
      "gmd,gd->gm",
      features,
      features[sets, chosen],
      precision=jax.lax.Precision.HIGHEST,
    )
    distances = norms - 2 * products + norms[sets, chosen, None]
    nearest = jnp.minimum(nearest, jnp.maximum(distances, 0))
    nearest = nearest.at[sets, chosen].set(-jnp.inf)
    return order, nearest, assign.argmax(nearest)[1]

  order = jnp.full(nearest.shape, jnp.iinfo(jnp.int32).max, jnp.int32)
  order, _, _ = jax.lax.fori_loop(0, steps, step, (order, nearest, start))
  return order


def _power_of_two(values):
  """Returns the smallest powers of two that are no smaller."""
  return 1 << np.ceil(np.log2(np.maximum(values, 1))).astype(np.int64)


def _candidates(
  assignment: np.ndarray, sizes: np.ndarray, quotas: np.ndarray, key: jax.Array
) -> list[np.ndarray]:
  """Returns the candidates of each cluster, int64 [m_r], in random order.

  Every row has a random rank that depends on the key and the row only; the
  candidates are the lowest ranks of a cluster.
  """
  limits = np.maximum(_CANDIDATES_PER_SAMPLE * quotas, _MIN_CANDIDATES)
  limits = np.where(quotas > 0, np.minimum(_power_of_two(limits), sizes), 0)
  # Ranks below this bound are enough: six standard deviations above the mean.
  bound = (limits + 6 * np.sqrt(limits) + 1) / np.maximum(sizes, 1)
  bound = np.where(limits == sizes, 2.0, bound) * (limits > 0)
  random = start_lib.generator(key)
  found = []
  for start in range(0, len(assignment), _SCAN_ROWS):
    labels = np.asarray(assignment[start : start + _SCAN_ROWS])
    ranks = random.random(len(labels))
    rows = np.flatnonzero(ranks < bound[labels])
    found.append((labels[rows], ranks[rows], start + rows))
  labels, ranks, rows = map(np.concatenate, zip(*found, strict=True))
  order = np.lexsort((ranks, labels))
  ends = np.searchsorted(labels[order], np.arange(len(sizes) + 1))
  return [
    rows[order[begin : min(begin + limit, end)]]
    for begin, end, limit in zip(ends[:-1], ends[1:], limits, strict=True)
  ]


def _groups(
  candidates: list[np.ndarray], quotas: np.ndarray
) -> Iterator[tuple[list[int], int, int]]:
  """Yields (clusters, sets, width): what `farthest_first` takes in one call.

  Clusters of like size and like quota go together, so that few steps are spent
  on clusters that are finished; the shapes are powers of two, so that few
  programs are compiled.
  """
  lengths = np.array([len(rows) for rows in candidates])
  widths = np.maximum(_power_of_two(lengths), _MIN_WIDTH)
  order = np.lexsort((-quotas, widths))
  order = order[(quotas > 0)[order]]
  for width in np.unique(widths[order]):
    clusters = order[widths[order] == width]
    sets = max(_GROUP_ROWS // int(width), 1)
    sets = min(sets, int(_power_of_two(len(clusters))))
    for first in range(0, len(clusters), sets):
      yield clusters[first : first + sets].tolist(), sets, int(width)


def _spread(
  bank: bank_lib.FeatureBank,
  candidates: list[np.ndarray],
  centroids: np.ndarray,
  quotas: np.ndarray,
  within: config.Within,
) -> dict[int, np.ndarray]:
  """Returns the chosen rows of each cluster that has more than its quota."""
  chosen = {}
  progress = tqdm.tqdm(
    total=int(quotas.sum()), desc="sampling", unit=" samples", disable=None
  )
  with progress:
    for clusters, sets, width in _groups(candidates, quotas):
      features = np.zeros((sets, width, bank.shape[1]), np.float32)
      distances = np.full((sets, width), np.inf, np.float32)
      members = [np.sort(candidates[r]) for r in clusters]
      taken = bank.take(np.concatenate(members))
      ends = np.cumsum([len(rows) for rows in members])
      parts = np.split(taken, ends[:-1])
      for i, (r, part) in enumerate(zip(clusters, parts, strict=True)):
        features[i, : len(part)] = part
        distances[i, : len(part)] = np.sum((part - centroids[r]) ** 2, axis=1)
      if within is config.Within.NEAREST:
        order = np.argsort(
          np.argsort(distances, axis=1, kind="stable"), axis=1, kind="stable"
        )
      else:
        nearest = np.where(np.isinf(distances), -np.inf, np.inf)
        order = np.asarray(
          farthest_first(
            features,
            nearest.astype(np.float32),
            np.argmin(distances, axis=1).astype(np.int32),
            np.int32(quotas[clusters].max()),
          )
        )
      for i, (r, rows) in enumerate(zip(clusters, members, strict=True)):
        chosen[r] = rows[order[i, : len(rows)] < quotas[r]]
      progress.update(int(quotas[clusters].sum()))
  return chosen


def decompress(
  bank: bank_lib.FeatureBank,
  assignment: np.ndarray,
  centroids: np.ndarray,
  quotas: np.ndarray,
  within: config.Within,
  key: jax.Array,
) -> np.ndarray:
  """Returns the chosen samples, int64 [B], sorted by cluster, then by index.

  `kcenter` begins with the sample nearest to the centroid and goes on with the
  one farthest from all chosen; `nearest` takes those nearest to the centroid;
  `random` any. All choose among the candidates (see the module).

  Args:
    bank: Features, [N, d].
    assignment: int32 [N], the cluster of each sample; may be mapped from disk.
    centroids: float32 [R, d].
    quotas: int64 [R], how many to take; at most the size of the cluster.
    within: How to choose inside a cluster.
    key: Random key: of the candidates, and of `random`.
  """
  sizes = np.zeros(len(quotas), np.int64)
  for start in range(0, len(assignment), _SCAN_ROWS):
    labels = np.asarray(assignment[start : start + _SCAN_ROWS])
    sizes += np.bincount(labels, minlength=len(quotas))
  if np.any(quotas > sizes):
    raise ValueError("a quota is larger than its cluster")
  candidates = _candidates(assignment, sizes, quotas, key)
  chosen = {}
  if within is not config.Within.RANDOM:
    partial = np.where(quotas < sizes, quotas, 0)
    chosen = _spread(bank, candidates, centroids, partial, within)
  return np.concatenate(
    [
      chosen[r] if r in chosen else np.sort(candidates[r][: quotas[r]])
      for r in range(len(quotas))
    ]
  )

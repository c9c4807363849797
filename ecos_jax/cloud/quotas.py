"""How the budget is divided among clusters, and in which order it is filled.

Integers throughout: the quotas sum to the budget exactly, and every prefix of
the order has its part of each quota.
"""

import functools
import heapq

import numpy as np

from ecos_jax import errors


def divide(weights: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
  """Returns how many samples to take from each cluster, int64 [R].

  In proportion to the weight; a cluster that is too small gives all it has, and
  the others share the rest in proportion. Fractions are settled by largest
  remainder, equal ones in order of index. Exact: the sum is `budget`, or the
  size of the clusters of positive weight together if that is less.

    >>> divide(np.array([60.0, 30, 10]), np.array([20, 500, 500]), 100)
    array([20, 60, 20])

  Args:
    weights: float64 [R], not negative; below 2^-52 of the largest they are 0.
    sizes: int64 [R], samples in each cluster.
    budget: Number of samples to choose.

  Raises:
    EcosError: The budget is not positive.
  """
  if budget < 1:
    raise errors.EcosError(f"`budget` must be > 0, got {budget}")
  if not np.isfinite(weights).all() or weights.min() < 0:
    raise ValueError("weights must be finite and not negative")
  # Python integers: products of counts overflow int64 in huge pools. A power of
  # two as the unit leaves the weights as they are, but for the smallest.
  unit = 52 - np.frexp(weights.max())[1]
  shares = np.rint(np.ldexp(weights.astype(np.float64), unit)).tolist()
  clusters = [
    (int(share), size, r)
    for r, (share, size) in enumerate(zip(shares, sizes.tolist(), strict=True))
    if share
  ]
  result = np.zeros(len(weights), np.int64)
  left = int(budget)
  total = sum(share for share, _, _ in clusters)
  # The smallest size per share fills up first.
  clusters.sort(
    key=functools.cmp_to_key(lambda a, b: a[1] * b[0] - b[1] * a[0])
  )
  full = 0
  for share, size, r in clusters:
    if left * share < size * total:
      break
    result[r] = size
    left -= size
    total -= share
    full += 1
  parts = [(*divmod(left * share, total), r) for share, _, r in clusters[full:]]
  for whole, _, r in parts:
    result[r] = whole
  parts.sort(key=lambda part: (-part[1], part[2]))
  for _, _, r in parts[: left - sum(whole for whole, _, _ in parts)]:
    result[r] += 1
  return result


def top_up(
  weights: np.ndarray, sizes: np.ndarray, budget: int, before: np.ndarray
) -> np.ndarray:
  """Returns how many more samples to take from each cluster, int64 [R].

  With those taken before, they have the quotas of the budget. A cluster that
  had more before gets none; the others share the rest.

    >>> top_up(np.ones(3), np.full(3, 99), 12, np.array([6, 1, 0]))
    array([0, 2, 3])

  Args:
    weights: As in `divide`.
    sizes: int64 [R], samples of each cluster that are left.
    budget: Number of samples, with those taken before.
    before: int64 [R], samples that were taken before.

  Raises:
    EcosError: The budget is not positive.
  """
  over = np.zeros(len(before), np.bool_)
  while True:
    left = budget - int(before[over].sum())
    if over.any() and left < 1:
      return np.zeros_like(before)
    quota = divide(np.where(over, 0, weights), sizes + before, left)
    new = (quota < before) & ~over
    if not new.any():
      return np.where(over, 0, quota - before)
    over |= new


def top_up_parts(
  parts: np.ndarray,
  weights: np.ndarray,
  sizes: np.ndarray,
  budget: int,
  before: np.ndarray,
) -> np.ndarray:
  """As `top_up` of K R clusters, with a budget for each R in a row.

  Args:
    parts: float64 [K], what the budget is in proportion to.
    weights: float64 [K R].
    sizes: int64 [K R].
    budget: Number of samples, with those taken before.
    before: int64 [K R].
  """
  shape = len(parts), -1
  weights, sizes = weights.reshape(shape), sizes.reshape(shape)
  before = before.reshape(shape)
  left = np.where(weights > 0, sizes, 0).sum(axis=1)
  more = top_up(parts, left, budget, before.sum(axis=1))
  rows = zip(weights, sizes, more + before.sum(axis=1), before, strict=True)
  return np.concatenate(
    [top_up(*row) if row[2] else np.zeros_like(row[1]) for row in rows]
  )


def interleave(quotas: np.ndarray) -> np.ndarray:
  """Returns the clusters of B places, int64 [B], evenly spread.

  Of the first b places, cluster r has b q_r / B, rounded down or up, for every
  b: the chairman assignment problem (Tijdeman 1980). The place of sample j of
  the cluster lies in floor(j B / q_r) .. ceil((j + 1) B / q_r) - 1; the sample
  with the earliest end goes first (Baruah et al. 1996, section 4).

    >>> interleave(np.array([1, 3, 2]))
    array([1, 2, 1, 0, 1, 2])

  Args:
    quotas: int64 [R], places of each cluster; B together.
  """
  budget = int(quotas.sum())
  clusters = np.repeat(np.arange(len(quotas)), quotas)
  quota = quotas[clusters]
  sample = np.arange(budget) - (np.cumsum(quotas) - quotas)[clusters]
  begin = sample * budget // quota
  end = -(-(sample + 1) * budget // quota)
  order = np.argsort(begin, kind="stable")
  upcoming = zip(
    begin[order].tolist(),
    end[order].tolist(),
    clusters[order].tolist(),
    strict=True,
  )
  waiting: list[tuple[int, int]] = []
  result = np.empty(budget, np.int64)
  following = next(upcoming, None)
  for place in range(budget):
    while following is not None and following[0] <= place:
      heapq.heappush(waiting, following[1:])
      following = next(upcoming, None)
    result[place] = heapq.heappop(waiting)[1]
  return result


def interleave_parts(quotas: np.ndarray) -> np.ndarray:
  """As `interleave` of K R clusters, with the parts evenly spread as well.

  Args:
    quotas: int64 [K, R].
  """
  parts = interleave(quotas.sum(axis=1))
  result = np.empty_like(parts)
  for k, of_part in enumerate(quotas):
    result[parts == k] = k * quotas.shape[1] + interleave(of_part)
  return result

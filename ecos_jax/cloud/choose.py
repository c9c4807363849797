"""The rule that turns the client's answer into samples of the pool.

For cluster r, of n_r samples of the pool:

    votes    v_r  estimated from the noisy scores (`scores.votes`)
    density  v_r / n_r: the client's density over the pool's, up to a factor
    weight   v_r (v_r / n_r)^density_power
    quota    the budget in proportion to the weights (`quotas`)
    samples  that many of the cluster (`sampling.decompress`)

All of it post-processes the answer, and costs no privacy.
"""

from collections.abc import Sequence
import enum
import functools
import heapq
import math
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import question as question_lib
from ecos_jax.cloud import sampling
from ecos_jax.cloud import scores as scores_lib
from ecos_jax.clustering import chunks

_Member = TypeVar("_Member", bound=enum.Enum)


class Choice(NamedTuple):
  """The chosen samples of the pool.

  Attributes:
    indices: int64 [B], rows of the pool.
    clusters: int32 [B], the cluster of each; -1 where there are no clusters.
    weights: float32 [B], how many of the client's samples each stands for,
      relative to the mean: the votes of a cluster, shared by its samples.
  """

  indices: np.ndarray
  clusters: np.ndarray
  weights: np.ndarray

  def by_cluster(self) -> "Choice":
    """Returns the same samples, sorted by cluster, then by index."""
    order = np.lexsort((self.indices, self.clusters))
    return Choice(*(array[order] for array in self))


def choose(
  features: chunks.Features | jax.Array,
  codebook: codebook_lib.Codebook,
  question: bytes,
  answers: bytes | Sequence[bytes],
  budget: int,
  key: jax.Array,
  *,
  filter: config.Filter | str = config.Sampling.filter,
  threshold: float = config.Sampling.threshold,
  estimate: config.Estimate | str = config.Sampling.estimate,
  density_power: float = config.Sampling.density_power,
  within: config.Within | str = config.Sampling.within,
  likely: float = config.Sampling.likely,
  central: float = config.Sampling.central,
) -> Choice:
  """Returns the samples of the pool that are most like the client's.

  The defaults are the method `ecos`; `**config.PAPER` is `ecos_paper`. In the
  order of the result, a prefix is the choice for a smaller budget: `samples`
  says how nearly.

  Args:
    features: float16 or float32 [N, d], an array or a feature bank: what the
      codebook was fitted on.
    codebook: The codebook, of R clusters.
    question: What the client was asked, from `question.ask`.
    answers: Of the client, or of several clients: their votes are added up.
    budget: B, the number of samples to choose. Fewer come back if the clusters
      with votes do not hold as many.
    key: Random key: of the candidates in large clusters, and of `random`.
    filter: `none`, or `threshold`: clusters with a lower score get nothing.
    threshold: In multiples of sigma, for that filter.
    estimate: Votes of a cluster: `posterior` mean given all scores, or `score`.
    density_power: Exponent of the client's density over the pool's in the
      weight of a cluster; 0 follows the client's distribution.
    within: In a cluster: `kcenter`, `nearest` to the centroid, or `random`.
    likely: Share of a cluster to choose from, where the client is densest.
    central: Share of that to choose from, nearest to the centroid.

  Raises:
    EcosError: An argument is refused, or does not belong to the others.
  """
  features = chunks.checked(features)
  shape = len(codebook.assignment), codebook.centroids.shape[1]
  if features.shape != shape:
    raise errors.EcosError(
      f"`features` must be those of `codebook`, {list(shape)}, got "
      f"{list(features.shape)}"
    )
  query = messages.Query.from_bytes(question)
  if not np.array_equal(query.centroids, codebook.centroids):
    raise errors.EcosError("`question` is not about `codebook`: give its own")
  if isinstance(answers, bytes):
    answers = [answers]
  if len(set(answers)) < len(answers):
    raise errors.EcosError("`answers` holds one answer twice: give it once")
  combined = question_lib.combine(
    [question_lib.read(answer, query) for answer in answers], query
  )
  options = config.Sampling(
    budget=budget,
    filter=_member(config.Filter, filter, "filter"),
    threshold=threshold,
    estimate=_member(config.Estimate, estimate, "estimate"),
    density_power=density_power,
    within=_member(config.Within, within, "within"),
    likely=likely,
    central=central,
  )
  for name in ("likely", "central"):
    if not 0 < getattr(options, name) <= 1:
      raise errors.EcosError(
        f"`{name}` must lie in (0, 1], got {getattr(options, name)}"
      )
  if not 0 <= density_power < math.inf:
    raise errors.EcosError(f"`density_power` must be >= 0, got {density_power}")
  return samples(
    features, codebook, combined.scores, combined.sigma, options, key
  )


def _member(kind: type[_Member], value: _Member | str, name: str) -> _Member:
  """Returns a member of an enum by its value."""
  try:
    return kind(value)
  except ValueError:
    values = ", ".join(member.value for member in kind)
    raise errors.EcosError(
      f"`{name}` must be one of {values}, got {value!r}"
    ) from None


def samples(
  features: chunks.Features,
  book: codebook_lib.Codebook,
  scores: np.ndarray,
  sigma: float,
  options: config.Sampling,
  key: jax.Array,
) -> Choice:
  """Returns the samples that noisy scores choose; a prefix is a smaller choice.

  Of the first b samples, b q_r / B are from cluster r, rounded down or up,
  where q_r is its quota; they are the first in the order of
  `sampling.decompress`. So a smaller budget can be taken from the front.

  A choice with the budget b from the beginning may differ. Its quotas differ by
  two at most where no cluster is full, and by more where one is. Its samples of
  a cluster are the same where the quotas are, unless the cluster gives all it
  has (these are in random order) or more than 512 samples or more than the
  shares `likely` and `central` of it, where candidates depend on the quota.

  Args:
    features: [N, d].
    book: The codebook, of R clusters.
    scores: int64 [R], noisy.
    sigma: Scale of the noise in a score.
    options: The rule, and the budget; `method` must be `ecos` or `ecos_paper`.
    key: Random key.

  Raises:
    EcosError: The budget is not positive, or no cluster has votes.
  """
  options = options.resolved()
  votes = scores_lib.votes(scores, book.sizes, sigma, options)
  density = scores_lib.density(votes, book.sizes)
  weights = votes * density**options.density_power
  quota = quotas(weights, book.sizes, options.budget)
  if not quota.any():
    raise errors.EcosError("no cluster has votes: there is nothing to choose")
  chosen = sampling.decompress(features, book, density, quota, options, key)
  clusters = interleave(quota)
  indices = np.empty(len(clusters), np.int64)
  indices[np.argsort(clusters, kind="stable")] = np.concatenate(chosen)
  shares = votes / np.maximum(quota, 1)
  shares /= np.repeat(shares, quota).mean()
  return Choice(
    indices,
    clusters.astype(np.int32),
    shares[clusters].astype(np.float32),
  )


def quotas(weights: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
  """Returns how many samples to take from each cluster, int64 [R].

  In proportion to the weight; a cluster that is too small gives all it has, and
  the others share the rest in proportion. Fractions are settled by largest
  remainder, equal ones in order of index. Exact: the sum is `budget`, or the
  size of the clusters of positive weight together if that is less.

    >>> quotas(np.array([60.0, 30, 10]), np.array([20, 500, 500]), 100)
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
  left = budget
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

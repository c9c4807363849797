"""How much privacy an answer costs: exact, composable, never below the truth.

`composition` derives and computes the costs. Here are the costs of the two
mechanisms, the noise that an epsilon needs, and the paper's bound.

    >>> round(epsilon(10.0, 0.8, 1e-5, "add_remove"), 3)
    0.276
    >>> round(epsilon(10.0, 0.8, 1e-5, "replace_one"), 3)
    0.39
    >>> round(sigma(1.0, 0.8, 1e-5, "add_remove"), 2)
    3.26
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.config import limits
from ecos_jax.privacy import composition
from ecos_jax.privacy.composition import Cost
from ecos_jax.privacy.composition import Release

__all__ = [
  "Cost",
  "Release",
  "alone",
  "cost",
  "epsilon",
  "group_epsilon",
  "labels",
  "paper_epsilon",
  "sigma",
  "split",
]

# sigma() returns a multiple of this.
SIGMA_STEP = 1 / 256
# split() returns multiples of sigma over this.
_SPLIT_STEPS = 8192
# More samples than any epsilon of use can hide; times their votes, it bounds
# the arrays.
_LARGEST_GROUP, _LARGEST_SHIFT = 10_000, 2**17


def labels(terms: messages.LabelTerms, requests: int, answers: int) -> Cost:
  """Returns the cost of Private-kNN labels.

  Screening and votes each draw a subsample of their own for each request.
  docs/privacy.md says why the number of answers must be fixed before the first.

  Args:
    terms: The terms of the labelling.
    requests: Largest number of requests that are screened.
    answers: Largest number of requests that are voted on.
  """
  return Cost(
    (
      Release(terms.sigma_screen, terms.gamma, times=requests),
      Release(terms.sigma_vote, terms.gamma, bins=2, times=answers),
    )
  )


def cost(answer: messages.Response | messages.LabelResponse) -> Cost:
  """Returns the cost of an answer, as its statement says."""
  if isinstance(answer, messages.LabelResponse):
    return labels(answer.terms, len(answer.labels), answer.answers)
  statement = answer.statement
  return Cost(
    (
      Release.of(
        statement.sigma, statement.gamma, statement.bins, statement.weight
      ),
    )
  )


def alone(answer: messages.Response | messages.LabelResponse) -> float:
  """Returns the epsilon of one answer, from its terms.

  What the answer states may be wrong, or forged, and is not used.
  """
  return cost(answer).epsilon(answer.terms.delta, answer.terms.relation)


def epsilon(
  sigma: float,
  gamma: float,
  delta: float,
  relation: str,
  bins: int = 1,
  weight: int = 0,
) -> float:
  """Returns the epsilon of one answer, an upper bound tight to about 1e-4.

  Args:
    sigma: Scale of the discrete Gaussian, in units of the L2 sensitivity.
    gamma: Rate of the Poisson subsample.
    delta: Of (epsilon, delta).
    relation: `add_remove` or `replace_one`.
    bins: As in `Release`: 1 for counts, one more than the votes for signs.
    weight: As in `Release`.

  Raises:
    EcosError: A term is out of range, or no bound is proven.
  """
  terms = messages.Terms(sigma, gamma, delta, relation)
  release = Release.of(terms.sigma, terms.gamma, bins, weight)
  return Cost((release,)).epsilon(delta, relation)


def group_epsilon(cost: Cost, delta: float, size: int) -> float:
  """Returns the epsilon of answers for a group of samples, rounded up.

  The samples, such as all of one person, are all there or all absent, and each
  votes: the unit is the sample, the relation add_remove. docs/privacy.md
  derives it ("Several samples of one person"). Where persons are the unit,
  `Cost.epsilon` holds for a person.

      >>> group_epsilon(Cost((Release(10.0, 0.8),)), 1e-5, 10)
      3.525507

  Args:
    cost: Of answers about samples; their terms must not depend on one another.
    delta: Of (epsilon, delta).
    size: Number of samples in the group, k.

  Raises:
    EcosError: A term is out of range, or the group is empty or too large.
  """
  shift = max((release.shift for release in cost.releases), default=1)
  most = min(_LARGEST_GROUP, _LARGEST_SHIFT // shift)
  if not 1 <= size <= most:
    raise errors.EcosError(f"`size` must be in [1, {most}], got {size}")
  add_remove = config.Relation.ADD_REMOVE.value
  given = [r for r in cost.releases if r.times]
  releases = tuple(dataclasses.replace(r, group=size) for r in given)
  if sum(release.times for release in releases) != 1:
    return Cost(releases).epsilon(delta, add_remove)
  # One answer needs no loss distribution, which would round the losses up.
  [release] = releases
  messages.Terms(release.sigma, release.gamma, delta, add_remove)
  absent, present = composition.log_pair(release)

  def excess(epsilon: float) -> float:
    """Returns the delta at `epsilon`, less `delta`."""
    loss = present - absent
    remove = np.exp(present) @ -np.expm1(np.minimum(epsilon - loss, 0))
    add = np.exp(absent) @ -np.expm1(np.minimum(epsilon + loss, 0))
    return float(max(remove, add)) - delta

  low, high = 0.0, float(np.abs(present - absent).max())
  while high - low > 1e-8:
    middle = (low + high) / 2
    low, high = (middle, high) if excess(middle) > 0 else (low, middle)
  return composition.rounded_up(high)


@functools.lru_cache(maxsize=1024)
def sigma(
  epsilon: float,
  gamma: float,
  delta: float,
  relation: str,
  bins: int = 1,
  weight: int = 0,
) -> float:
  """Returns a sigma that costs at most `epsilon`; one step less costs more.

  It is a multiple of `SIGMA_STEP`, or the smallest sigma that is allowed. Below
  a sigma of about 2 the cost does not always fall as sigma grows, so there an
  even smaller sigma may be enough as well.

  Args:
    epsilon: The most that one answer may cost, as `epsilon()` counts.
    gamma: Rate of the Poisson subsample.
    delta: Of (epsilon, delta).
    relation: `add_remove` or `replace_one`.
    bins: As in `Release`.
    weight: As in `Release`.

  Raises:
    EcosError: A term is out of range, no bound is proven, or no sigma within
      the limits is enough.
  """
  if not 0 < epsilon < math.inf:
    raise errors.EcosError(f"`epsilon` must be positive, got {epsilon}")

  def excess(steps: int) -> float:
    """Returns the logarithm of the cost over `epsilon`."""
    release = Release.of(steps * SIGMA_STEP, gamma, bins, weight)
    cost = Cost((release,))
    return math.log(max(cost.epsilon(delta, relation), 1e-9) / epsilon)

  least = round(limits.MIN_SIGMA / SIGMA_STEP)
  most = round(limits.max_sigma(bins + weight**2) / SIGMA_STEP)
  # What a Gaussian of sensitivity one needs, about.
  guess = math.sqrt(2 * math.log(1.25 / delta)) * gamma / epsilon / SIGMA_STEP
  steps = _least(excess, math.ceil(guess), least, most)
  if steps is None:
    raise errors.EcosError(
      f"`epsilon`={epsilon:g} needs a sigma above {most * SIGMA_STEP:g}: "
      "allow a larger epsilon"
    )
  return steps * SIGMA_STEP


def _least(
  excess: Callable[[int], float], guess: int, least: int, most: int
) -> int | None:
  """Returns a number where `excess` <= 0, while it is > 0 for one less.

  Args:
    excess: Falls, nearly linearly in the logarithm of its argument.
    guess: Where to begin.
    least: The smallest number to return, even if a smaller one would do.
    most: The largest number to return; None is returned if it is too small.
  """
  high = min(max(guess, 2 * least), most)
  while (high_excess := excess(high)) > 0:
    if high == most:
      return None
    high = min(2 * high, most)
  low = high
  while (low_excess := excess(low)) <= 0:
    high, high_excess = low, low_excess
    if low == least:
      return low
    low = max(low // 2, least)
  # Interpolation takes a few steps, halving would take a dozen.
  while high - low > 1:
    slope = math.log(high / low) / (low_excess - high_excess)
    middle = math.ceil(low * math.exp(slope * low_excess))
    middle = min(max(middle, low + 1), high - 1)
    middle_excess = excess(middle)
    if middle_excess > 0:
      low, low_excess = middle, middle_excess
    else:
      high, high_excess = middle, middle_excess
  return high


@functools.lru_cache(maxsize=64)
def split(
  sigma: float, part: float, gamma: float, delta: float, relation: str
) -> tuple[float, float]:
  """Returns the sigmas of two answers that together cost what one does.

  They cost no more, and for a sigma of 2 or more at most 0.1 % less. Both must
  be fixed before the first answer (docs/privacy.md).

  Args:
    sigma: The noise of the one answer.
    part: The first answer's share of the sum of 1 / sigma^2, in (0, 1).
    gamma: Rate of the Poisson subsample of each answer.
    delta: Of (epsilon, delta).
    relation: `add_remove` or `replace_one`.

  Raises:
    EcosError: A term is out of range.
  """
  target = max(epsilon(sigma, gamma, delta, relation), 1e-9)

  def pair(steps: int) -> tuple[float, float]:
    scale = steps * sigma / _SPLIT_STEPS
    return scale / math.sqrt(part), scale / math.sqrt(1 - part)

  def excess(steps: int) -> float:
    # Unchecked, since a guess may lie outside of the limits.
    cost = Cost(tuple(Release(s, gamma) for s in pair(steps)))
    return math.log(max(cost._epsilon(delta, relation), 1e-9) / target)

  # Without subsampling and rounding the scale would be 1.
  steps = _least(excess, _SPLIT_STEPS, 1, 2 * _SPLIT_STEPS)
  assert steps is not None
  return pair(steps)


def paper_epsilon(sigma: float, gamma: float, delta: float) -> float:
  """Returns the paper's bound for the same noise, to compare with `epsilon`.

  It is the moments accountant's bound, alpha / sigma^2 at the best order alpha,
  for a Gaussian of L2 sensitivity sqrt 2 (one sample replaced), amplified by
  the Poisson subsample. It reproduces the six values of Hong et al. (NeurIPS
  2022) to 1 %. This package claims `epsilon`, not this.

  Args:
    sigma: Scale of the noise, in votes.
    gamma: Rate of the Poisson subsample.
    delta: Of (epsilon, delta).
  """
  messages.Terms(sigma, gamma, delta, config.Relation.REPLACE_ONE.value)
  whole = 1 / sigma**2 + 2 * math.sqrt(-math.log(delta)) / sigma
  return math.log1p(gamma * math.expm1(whole))

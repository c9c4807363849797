"""How much privacy an answer costs: exact, composable, never below the truth.

An answer is a histogram of votes, one vote a sample, over a Poisson subsample
of rate gamma, plus discrete Gaussian noise of scale sigma on every count. With
p0 the noise, p1 the noise moved by one and m = (1 - gamma) p0 + gamma p1, a
sample that is added or removed is told apart no better than m from p0, and one
that is replaced no better than (m, p0) from (p0, m): docs/privacy.md derives
both. So two privacy-loss distributions (PLDs) say everything: "remove" (m
against p0) and "add" (p0 against m). They compose by convolution; epsilon is
read off the composed PLD.

The PLDs are dp_accounting's, made from the probability masses, with all losses
rounded up, so that every epsilon here is an upper bound. It is reported rounded
up to six decimals.

    >>> round(epsilon(10.0, 0.8, 1e-5, "add_remove"), 3)
    0.276
    >>> round(epsilon(10.0, 0.8, 1e-5, "replace_one"), 3)
    0.39

What noise an epsilon of 1 needs, and what five such answers cost together:

    >>> needed = sigma(1.0, 0.8, 1e-5, "add_remove")
    >>> round(needed, 2)
    3.26
    >>> once = Cost((Release(needed, 0.8),))
    >>> round(Cost.total(5 * [once], 1e-5, "add_remove"), 1)
    2.4
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

from dp_accounting import pld
import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.config import limits

# sigma() answers with a multiple of this.
SIGMA_STEP = 1 / 256
# split() answers with multiples of sigma over this.
_SPLIT_STEPS = 8192
# The noise exceeds so many sigma with a probability of about 1e-37.
_SPAN = 13
# Losses are rounded up to a multiple of the largest loss over this number: for
# one answer, and (faster, still within about 1 % for thousands) for several.
_LOSS_STEPS = 2**17
_LOSS_STEPS_COMPOSED = 2**16
# Above the rounding errors of the convolutions; taken off delta.
_NUMERICAL_DELTA = 1e-10
_DECIMALS = 1e6

_Pld = pld.privacy_loss_distribution.PrivacyLossDistribution


@dataclasses.dataclass(frozen=True)
class Release:
  """Noisy counts of votes, released one or several times.

  Attributes:
    sigma: Scale of the discrete Gaussian on every count.
    gamma: Rate of the Poisson subsample, drawn anew for every release.
    moved: How many counts the presence of one sample moves by one. 1: a
      histogram of votes, or the largest count of one (Private-kNN's screening).
      2: a histogram where the sample also displaces another one's vote
      (Private-kNN's votes of the k nearest).
    times: Number of releases.
  """

  sigma: float
  gamma: float
  moved: int = 1
  times: int = 1


def log_noise(sigma: float, moved: int = 1) -> tuple[np.ndarray, np.ndarray]:
  """Returns integers and the log-probabilities of the noise on them.

  For `moved` = 1 this is the discrete Gaussian. For 2 it is the difference
  u - v of two: where one count moves up and the other down, the loss depends on
  nothing else, and u - v moves by 2.

  Args:
    sigma: Scale.
    moved: 1 or 2.
  """
  reach = math.ceil(_SPAN * sigma * math.sqrt(moved)) + 2 * moved
  x = np.arange(-reach, reach + 1)
  log_mass = -(x**2) / (2 * moved * sigma**2)
  if moved == 2:
    # The sum over u of exp(-(u - x/2)^2 / sigma^2) depends on x's parity only.
    u = np.arange(-reach, reach + 1)
    sums = [np.exp(-((u - h) ** 2) / sigma**2).sum() for h in (0.0, 0.5)]
    log_mass = log_mass + np.log(sums)[x % 2]
  return x, log_mass - np.log(np.exp(log_mass).sum())


def _log_pair(release: Release) -> tuple[np.ndarray, np.ndarray]:
  """Returns log-probabilities without the sample (p0) and with it (m)."""
  _, log_mass = log_noise(release.sigma, release.moved)
  absent, present = log_mass[release.moved :], log_mass[: -release.moved]
  if release.gamma < 1:
    present = np.logaddexp(
      math.log1p(-release.gamma) + absent, math.log(release.gamma) + present
    )
  return absent, present


def _largest_loss(release: Release) -> float:
  absent, present = _log_pair(release)
  return float(np.abs(present - absent).max())


@functools.lru_cache(maxsize=64)
def _plds(release: Release, interval: float) -> tuple[_Pld, _Pld]:
  """Returns the PLDs of removing and of adding a sample."""
  absent, present = _log_pair(release)
  p0, m = dict(enumerate(absent.tolist())), dict(enumerate(present.tolist()))
  remove, add = (
    pld.privacy_loss_distribution.from_two_probability_mass_functions(
      lower, upper, value_discretization_interval=interval
    )
    for lower, upper in ((p0, m), (m, p0))
  )
  if release.times == 1:
    return remove, add
  return remove.self_compose(release.times), add.self_compose(release.times)


@functools.lru_cache(maxsize=64)
def _worst(
  releases: tuple[Release, ...], relation: config.Relation
) -> tuple[_Pld, ...]:
  """Returns the PLDs of all releases together, one for each direction."""
  replace = relation is config.Relation.REPLACE_ONE
  if replace and any(release.moved > 1 for release in releases):
    raise errors.EcosError(
      "no bound is proven for replace_one with k-nearest-neighbour votes: "
      "account for them with --relation=add_remove, and keep answers of the "
      "two relations in ledgers (and data) of their own"
    )
  single = sum(release.times for release in releases) == 1
  steps = _LOSS_STEPS if single else _LOSS_STEPS_COMPOSED
  interval = max(map(_largest_loss, releases)) / steps
  removes, adds = zip(
    *(_plds(release, interval) for release in releases), strict=True
  )
  remove = functools.reduce(_Pld.compose, removes)
  add = functools.reduce(_Pld.compose, adds)
  return (remove.compose(add),) if replace else (remove, add)


@functools.lru_cache(maxsize=1024)
def _epsilon(
  releases: tuple[Release, ...], delta: float, relation: config.Relation
) -> float:
  if delta <= 2 * _NUMERICAL_DELTA:
    return math.inf
  exact = max(
    distribution.get_epsilon_for_delta(delta - _NUMERICAL_DELTA)
    for distribution in _worst(releases, relation)
  )
  if math.isinf(exact):
    return exact
  return math.ceil(exact * _DECIMALS) / _DECIMALS


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one or many releases cost together; `a + b` composes.

  Composition holds for queries that are chosen adaptively, if the terms of the
  releases are not: see docs/privacy.md. Where they may be, see `total`.

  Attributes:
    releases: What was released.
  """

  releases: tuple[Release, ...] = ()

  def __add__(self, other: "Cost") -> "Cost":
    """Returns the cost of both."""
    return Cost(self.releases + other.releases)

  def epsilon(self, delta: float, relation: str) -> float:
    """Returns the epsilon of all releases together, rounded up to 1e-6.

    It is infinite if delta is too small for so many releases.

    Args:
      delta: Of (epsilon, delta).
      relation: `add_remove` or `replace_one`.

    Raises:
      EcosError: A term is out of range, or no bound is proven.
    """
    for release in self.releases:
      messages.Terms(release.sigma, release.gamma, delta, relation)
    return self._epsilon(delta, relation)

  def _epsilon(self, delta: float, relation: str) -> float:
    """Returns `epsilon`, also for parts of a delta."""
    times: dict[Release, int] = {}
    for release in self.releases:
      once = dataclasses.replace(release, times=1)
      times[once] = times.get(once, 0) + release.times
    if not times:
      return 0.0
    merged = (dataclasses.replace(r, times=n) for r, n in times.items())
    return _epsilon(
      tuple(sorted(merged, key=dataclasses.astuple)),
      delta,
      config.Relation(relation),
    )

  @classmethod
  def total(cls, costs: Sequence["Cost"], delta: float, relation: str) -> float:
    """Returns the epsilon of answers whose terms may be chosen adaptively.

    Whoever never lets it exceed a number fixed beforehand has that epsilon.
    Answers of equal cost are composed; of unequal costs, the epsilons are
    added, each at a share of delta that its place decides. docs/privacy.md has
    the proof ("Terms that depend on earlier answers").

    Args:
      costs: Of all answers, in the order in which they were given.
      delta: Of (epsilon, delta).
      relation: `add_remove` or `replace_one`.

    Raises:
      EcosError: A term is out of range, or no bound is proven.
    """
    single = [cost.epsilon(delta, relation) for cost in costs]
    if len(costs) < 2:
      return sum(single)
    # Half of delta for each of the two cases.
    if len(set(costs)) == 1:
      return sum(costs, cls())._epsilon(delta / 2, relation)
    return math.fsum(
      cost._epsilon(delta / (2 * place * (place + 1)), relation)
      for place, cost in enumerate(costs, start=1)
    )


def labels(terms: messages.LabelTerms, requests: int, answers: int) -> Cost:
  """Returns the cost of Private-kNN labels.

  Every request is screened, and that many are voted on, each on a subsample of
  its own: see docs/privacy.md for why the number of answers must be fixed
  before the first one.

  Args:
    terms: Of the labelling.
    requests: How many are screened at most.
    answers: How many are voted on at most.
  """
  return Cost(
    (
      Release(terms.sigma_screen, terms.gamma, times=requests),
      Release(terms.sigma_vote, terms.gamma, moved=2, times=answers),
    )
  )


def cost(answer: messages.Response | messages.LabelResponse) -> Cost:
  """Returns the cost of an answer, as its statement says."""
  if isinstance(answer, messages.LabelResponse):
    return labels(answer.terms, len(answer.labels), answer.answers)
  statement = answer.statement
  return Cost((Release(statement.sigma, statement.gamma),))


def epsilon(sigma: float, gamma: float, delta: float, relation: str) -> float:
  """Returns the epsilon of one answer, an upper bound tight to about 1e-4.

  Args:
    sigma: Scale of the discrete Gaussian, in votes.
    gamma: Rate of the Poisson subsample.
    delta: Of (epsilon, delta).
    relation: `add_remove` or `replace_one`.

  Raises:
    EcosError: A term is out of range.
  """
  terms = messages.Terms(sigma, gamma, delta, relation)
  return Cost((Release(terms.sigma, terms.gamma),)).epsilon(delta, relation)


@functools.lru_cache(maxsize=1024)
def sigma(epsilon: float, gamma: float, delta: float, relation: str) -> float:
  """Returns a sigma that costs at most `epsilon`, where a step less costs more.

  The answer is a multiple of `SIGMA_STEP` (or the least that is allowed), and
  the claim always holds: the module's `epsilon` of it is at most the one asked
  for. Below a sigma of about 2 epsilon does not fall everywhere as sigma grows,
  so there a still smaller one may be enough as well.

  Args:
    epsilon: The most that one answer may cost, as `epsilon()` counts.
    gamma: Rate of the Poisson subsample.
    delta: Of (epsilon, delta).
    relation: `add_remove` or `replace_one`.

  Raises:
    EcosError: A term is out of range, or no sigma within the limits is enough.
  """
  if not 0 < epsilon < math.inf:
    raise errors.EcosError(f"epsilon must be positive, got {epsilon}")

  def excess(steps: int) -> float:
    """Returns the logarithm of the cost over `epsilon`."""
    cost = Cost((Release(steps * SIGMA_STEP, gamma),))
    return math.log(max(cost.epsilon(delta, relation), 1e-9) / epsilon)

  least = round(limits.MIN_SIGMA / SIGMA_STEP)
  most = round(limits.MAX_SIGMA / SIGMA_STEP)
  # What a Gaussian of sensitivity one needs, about.
  guess = math.sqrt(2 * math.log(1.25 / delta)) * gamma / epsilon / SIGMA_STEP
  steps = _least(excess, math.ceil(guess), least, most)
  if steps is None:
    raise errors.EcosError(
      f"epsilon {epsilon:g} needs a sigma above {limits.MAX_SIGMA:g}: "
      "allow a larger epsilon"
    )
  return steps * SIGMA_STEP


def _least(
  excess: Callable[[int], float], guess: int, least: int, most: int
) -> int | None:
  """Returns a number for which `excess` <= 0, and > 0 for one less.

  Args:
    excess: Falls, nearly as the logarithm of its argument.
    guess: Where to begin.
    least: The least to answer with, even if less would do.
    most: If even this is too small, the answer is None.
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
  # Interpolating takes a few steps where halving takes a dozen.
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
  """Returns the sigmas of two answers that cost what one with `sigma` does.

  Composed, and at most that: by less than .1 % where `sigma` is 2 or more. Both
  are to be fixed before the first answer (docs/privacy.md).

  Args:
    sigma: Of the one answer.
    part: The first answer's part of the sum of 1 / sigma^2, in (0, 1).
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
    # Not checked: what is tried may lie outside of the limits.
    cost = Cost(tuple(Release(s, gamma) for s in pair(steps)))
    return math.log(max(cost._epsilon(delta, relation), 1e-9) / target)

  # Without subsampling and grids the scale would be 1.
  steps = _least(excess, _SPLIT_STEPS, 1, 2 * _SPLIT_STEPS)
  assert steps is not None
  return pair(steps)


def paper_epsilon(sigma: float, gamma: float, delta: float) -> float:
  """Returns the bound that the paper gives for the same noise.

  The moments accountant's bound of a Gaussian of L2 sensitivity sqrt 2 (one
  sample replaced), alpha / sigma^2, at the best order alpha, amplified by the
  Poisson subsample. It reproduces the six values of Hong et al. (NeurIPS 2022)
  to 1 %. It is here to compare with; what this package claims is `epsilon`.

  Args:
    sigma: Scale of the noise, in votes.
    gamma: Rate of the Poisson subsample.
    delta: Of (epsilon, delta).
  """
  messages.Terms(sigma, gamma, delta, config.Relation.REPLACE_ONE.value)
  whole = 1 / sigma**2 + 2 * math.sqrt(-math.log(delta)) / sigma
  return math.log1p(gamma * math.expm1(whole))

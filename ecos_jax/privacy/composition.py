"""The privacy loss of noisy counts, and of several answers together.

An answer is a histogram over a Poisson subsample of rate gamma, one vote per
sample, plus discrete Gaussian noise of scale sigma on every count. Let p0 be
the distribution of the noise, p1 the same shifted by one, and
m = (1 - gamma) p0 + gamma p1. Nobody tells data with a sample from data without
it better than m from p0, or from data with another sample in its place better
than (m, p0) from (p0, m); docs/privacy.md derives both. So two privacy-loss
distributions (PLDs) decide everything: "remove" (m against p0) and "add" (p0
against m). They compose by convolution, and epsilon is read off the composed
PLD.

dp_accounting convolves losses that are multiples of an interval. For a few
answers they are rounded up to one, for many split between two (`_split`). Both
only overstate the loss, so every epsilon here is an upper bound. It is rounded
up to six decimals.

What five answers cost together:

    >>> once = Cost((Release(sigma=3.26, gamma=0.8),))
    >>> round(once.epsilon(1e-5, "add_remove"), 1)
    1.0
    >>> round(sum(5 * [once], Cost()).epsilon(1e-5, "add_remove"), 1)
    2.3
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages

if TYPE_CHECKING:
  from dp_accounting.pld import privacy_loss_distribution

_Pld: TypeAlias = "privacy_loss_distribution.PrivacyLossDistribution"

# The noise exceeds this many sigma with a probability of about 1e-37.
_SPAN = 13
# Up to so many answers, losses are rounded up to a multiple of the largest loss
# over this number: for one answer, and (faster) for several.
_FEW = 64
_LOSS_STEPS = 2**17
_LOSS_STEPS_COMPOSED = 2**16
# Rounding up shifts each loss by half an interval, and that adds up. For more
# answers, or if it is more than _ROUNDED_UP of the root mean square of the sum,
# losses are split, which widens the sum a little. The interval is the root mean
# square loss of one answer over _SPREAD_STEPS, or that of all answers over
# _TOTAL_STEPS if that is larger: so the arrays stay small. Where one answer of
# large losses meets many of small ones, _LOSS_STEPS_SPLIT bounds them.
_ROUNDED_UP = 0.01
_SPREAD_STEPS = 32
_LOSS_STEPS_SPLIT = 2**20
_TOTAL_STEPS = 2**14
# From so many masses on dp_accounting composes arrays, and not dictionaries.
_DENSE = 1001
# Above the rounding errors of the convolutions, which grow with the number of
# answers; taken off delta.
_NUMERICAL_DELTA = 1e-10
_NUMERICAL_DELTA_EACH = 1e-15


@dataclasses.dataclass(frozen=True)
class Release:
  """Noisy counts of votes, released once or several times.

  Attributes:
    sigma: Scale of the discrete Gaussian on every count.
    gamma: Rate of the Poisson subsample; each release draws its own.
    bins: Number of counts that one sample changes, by one each, up or down. 1:
      a histogram of votes, or its largest count (Private-kNN's screening). 2: a
      histogram where the sample also displaces another sample's vote
      (Private-kNN's votes of the k nearest). More: signed votes.
    times: Number of releases.
    weight: By how much it changes one more count; 0: there is none.
    group: Number of samples that are there or absent together, such as all of
      one person. Each is drawn, or not, by itself.
  """

  sigma: float
  gamma: float
  bins: int = 1
  times: int = 1
  weight: int = 0
  group: int = 1

  @classmethod
  def of(
    cls, sigma: float, gamma: float, bins: int = 1, weight: int = 0
  ) -> "Release":
    """Returns a release whose noise is sigma times the L2 sensitivity."""
    scale = sigma * math.sqrt(bins + weight**2)
    return cls(scale, gamma, bins, weight=weight)

  @property
  def shift(self) -> int:
    """The square of the L2 sensitivity."""
    return self.bins + self.weight**2


def log_noise(
  sigma: float, bins: int = 1, weight: int = 0, order: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns integers and the log-probability of the noise at each, both [n].

  For one bin this is the discrete Gaussian. In general it is the law of
  t = sum of v_i z_i, with z the noise and v what one sample adds to the counts:
  the loss depends on t alone, which shifts by V = |v|^2. So
  P(t = x) = exp(-x^2 / (2 V sigma^2)) c(x mod V). A Fourier transform of length
  V gives the probability of each x mod V, and with it c: no tail is ever
  computed as a small difference (docs/privacy.md, "Several votes").

  Args:
    sigma: Scale of the noise.
    bins: As in `Release`.
    weight: As in `Release`.
    order: The integers also reach as far as Renyi divergences of this order
      need: the powers p^order q^(1 - order) lie around order times the shift.
  """
  shift = bins + weight**2
  if shift > max(1, 32 * sigma**2):
    raise ValueError("sigma is too small for so many votes")
  reach = math.ceil(_SPAN * sigma * math.sqrt(shift))
  reach += math.ceil(order + 1) * shift
  x = np.arange(-reach, reach + 1)
  log_mass = -(x**2) / (2 * shift * sigma**2)
  if shift > 1:
    wide = math.ceil(_SPAN * sigma) + shift
    z = np.arange(-wide, wide + 1)
    # Of one count's noise, modulo the shift; it is even, so this is real.
    one = np.bincount(z % shift, np.exp(-(z**2) / (2 * sigma**2)), shift)
    one = np.fft.fft(one / one.sum()).real
    law = one**bins
    if weight:
      law = law * one[np.arange(shift) * weight % shift]
    law = np.fft.ifft(law).real
    gaussian = np.bincount(x % shift, np.exp(log_mass), shift)
    log_mass = log_mass + np.log(law / gaussian)[x % shift]
  return x, log_mass - np.log(np.exp(log_mass).sum())


def log_pair(
  release: Release, order: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns log-probabilities without the sample (p0) and with it (m).

  Of a group, m mixes the shifts by as many samples as may be drawn, as far as
  all of them (docs/privacy.md, "Several samples of one person").

  Args:
    release: One release.
    order: As in `log_noise`.
  """
  group, gamma, shift = release.group, release.gamma, release.shift
  _, log_mass = log_noise(
    release.sigma, release.bins, release.weight, group * order
  )
  farthest = group * shift
  absent = log_mass[farthest:]
  present = np.full(len(absent), -np.inf)
  for drawn in range(group + 1) if gamma < 1 else [group]:
    rest = group - drawn
    chance = math.lgamma(group + 1) - math.lgamma(drawn + 1)
    chance -= math.lgamma(rest + 1)
    if gamma < 1:
      chance += drawn * math.log(gamma) + rest * math.log1p(-gamma)
    moved = log_mass[rest * shift : len(log_mass) - drawn * shift]
    present = np.logaddexp(present, chance + moved)
  return absent, present


def _largest_loss(release: Release) -> float:
  absent, present = log_pair(release)
  return float(np.abs(present - absent).max())


def _root_mean_square_loss(release: Release) -> float:
  absent, present = log_pair(release)
  squares = (present - absent) ** 2
  return math.sqrt(min(np.exp(present) @ squares, np.exp(absent) @ squares))


def _interval(releases: tuple[Release, ...]) -> tuple[float, bool]:
  """Returns the interval of the losses, and whether they are split."""
  count = sum(release.times for release in releases)
  largest = max(map(_largest_loss, releases))
  if count == 1:
    return largest / _LOSS_STEPS, False
  spreads = [_root_mean_square_loss(release) for release in releases]
  total = math.hypot(
    *(s * math.sqrt(r.times) for s, r in zip(spreads, releases, strict=True))
  )
  interval = largest / _LOSS_STEPS_COMPOSED
  if count <= _FEW and count * interval <= total * _ROUNDED_UP:
    return interval, False
  interval = max(
    min(spreads) / _SPREAD_STEPS,
    total / _TOTAL_STEPS,
    largest / _LOSS_STEPS_SPLIT,
  )
  # A power of two: sums of nearly as many releases share their parts.
  return 2.0 ** math.ceil(math.log2(interval)), True


def _library() -> ModuleType:
  # Slow to import, and only what computes a cost needs it.
  from dp_accounting.pld import privacy_loss_distribution

  return privacy_loss_distribution


def _split(
  log_lower: np.ndarray, log_upper: np.ndarray, interval: float
) -> _Pld:
  """Returns a PLD of multiples of an interval that is never below the truth.

  An outcome of probabilities p and q, between the multiples l and l + interval
  of the loss log(q / p), becomes two outcomes, one with each of these losses,
  whose probabilities sum to p and q. Whoever sees which of the two occurred
  knows at least as much as before. (These are the connected dots of Doroshenko
  et al., PoPETs 2022, without differences of nearly equal numbers.)

  Args:
    log_lower: Log-probabilities p, [n].
    log_upper: Log-probabilities q, [n].
    interval: Distance of the losses.
  """
  loss = log_upper - log_lower
  below = np.floor(loss / interval).astype(np.int64)
  q = np.exp(log_upper)
  # q_below + q_above = q; q_below e^-l + q_above e^-(l + interval) = p.
  share = np.expm1(below * interval - loss) / math.expm1(-interval)
  above = q * np.clip(share, 0, 1)
  first = int(below.min())
  size = max(int(below.max()) - first + 2, _DENSE)
  masses = np.bincount(below - first, q - above, size)
  masses += np.bincount(below - first + 1, above, size)
  return _library().PrivacyLossDistribution.create_from_rounded_probability(
    dict(enumerate(masses.tolist(), first)), 0.0, interval
  )


def _round_up(
  log_lower: np.ndarray, log_upper: np.ndarray, interval: float
) -> _Pld:
  """Returns the PLD with all losses rounded up; arguments as of `_split`."""
  above = np.ceil((log_upper - log_lower) / interval).astype(np.int64)
  first = int(above.min())
  masses = np.bincount(above - first, np.exp(log_upper))
  kept = np.flatnonzero(masses)
  return _library().PrivacyLossDistribution.create_from_rounded_probability(
    dict(zip((kept + first).tolist(), masses[kept].tolist(), strict=True)),
    0.0,
    interval,
  )


@functools.lru_cache(maxsize=16)
def _plds(release: Release, interval: float, split: bool) -> tuple[_Pld, _Pld]:
  """Returns the PLDs of removing and of adding a sample."""
  absent, present = log_pair(release)
  if split:
    remove = _split(absent, present, interval)
    add = _split(present, absent, interval)
  else:
    remove = _round_up(absent, present, interval)
    add = _round_up(present, absent, interval)
  if release.times == 1:
    return remove, add
  return remove.self_compose(release.times), add.self_compose(release.times)


def check_relation(
  releases: Sequence[Release], relation: config.Relation
) -> None:
  """Checks that a bound is proven.

  Raises:
    EcosError: None is.
  """
  if relation is config.Relation.REPLACE_ONE and any(
    release.shift > 1 or release.group > 1 for release in releases
  ):
    raise errors.EcosError(
      "no bound is proven for replace_one where a sample has several votes "
      "(signed votes, or votes of the k nearest): account for them with "
      "`relation` add_remove, and keep answers of the two relations in "
      "separate ledgers, about separate data"
    )


@functools.lru_cache(maxsize=16)
def _worst(
  releases: tuple[Release, ...], relation: config.Relation
) -> tuple[_Pld, ...]:
  """Returns the PLDs of all releases together, one for each direction."""
  check_relation(releases, relation)
  interval, split = _interval(releases)
  removes, adds = zip(
    *(_plds(release, interval, split) for release in releases), strict=True
  )
  remove, add = (
    functools.reduce(lambda one, other: one.compose(other), plds)
    for plds in (removes, adds)
  )
  if relation is config.Relation.REPLACE_ONE:
    return (remove.compose(add),)
  return remove, add


def rounded_up(epsilon: float) -> float:
  """Returns an epsilon rounded up to six decimals."""
  return epsilon if math.isinf(epsilon) else math.ceil(epsilon * 1e6) / 1e6


@functools.lru_cache(maxsize=1024)
def _epsilon(
  releases: tuple[Release, ...], delta: float, relation: config.Relation
) -> float:
  count = sum(release.times for release in releases)
  numerical = max(_NUMERICAL_DELTA, _NUMERICAL_DELTA_EACH * count)
  if delta <= 2 * numerical:
    return math.inf
  return rounded_up(
    max(
      distribution.get_epsilon_for_delta(delta - numerical)
      for distribution in _worst(releases, relation)
    )
  )


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one or many releases cost together; `a + b` composes.

  The queries may depend on earlier answers; the terms of the releases must not
  (docs/privacy.md). If they may, use `filter.Filter`.

  Attributes:
    releases: What was released.
  """

  releases: tuple[Release, ...] = ()

  def __add__(self, other: "Cost") -> "Cost":
    """Returns the cost of both together."""
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
    """Returns `epsilon` for any delta; the terms are not checked."""
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

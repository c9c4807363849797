"""What answers cost together if their terms may depend on earlier answers.

Loss distributions compose only if all terms are fixed beforehand. A Renyi
divergence of one fixed order composes in any case (Feldman and Zrnic, NeurIPS
2021): its conditional values add up, and if the sum never exceeds a bound that
was fixed beforehand, all answers together keep that bound. docs/privacy.md has
the proof ("Terms that depend on earlier answers").

So the orders are fixed before the first answer. One is the best for the
epsilon that all answers may cost; a few others, which cost little, keep the
total low while little is spent.

    >>> ten, five = (Cost((Release(sigma, 0.8),)) for sigma in (10.0, 5.0))
    >>> fixed = Filter.of(0.75, 1e-5)
    >>> round(fixed.epsilon([ten, five], 1e-5, "add_remove"), 2)
    0.75
    >>> round((ten + five).epsilon(1e-5, "add_remove"), 2)  # fixed beforehand
    0.68
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Annotated

import numpy as np

from ecos_jax import config
from ecos_jax.messages import fields
from ecos_jax.messages import wire
from ecos_jax.privacy import composition
from ecos_jax.privacy.composition import Cost
from ecos_jax.privacy.composition import Release

# Orders for any epsilon, from about 20 down to 0.05, and their part of delta
# beside the order for one epsilon.
_ORDERS = tuple(1 + 2.0**k for k in range(-1, 8))
_PART = 0.05
# The best order is found on a grid. One that is larger helps only where epsilon
# is below 0.05.
_CANDIDATES = 1 + 2 ** np.linspace(-3, 8, 353)
# Above the rounding errors of one divergence.
_NUMERICAL = 1e-12


def _numbers(value: object, field: str) -> tuple[object, ...]:
  """Checks for positive finite numbers."""
  if not isinstance(value, list | tuple) or not value:
    raise wire.ProtocolError(f"{field} must be a list of numbers")
  check = fields.number(1e-9, 1e9)
  return tuple(check(item, field) for item in value)


@dataclasses.dataclass(frozen=True)
class Filter(fields.Checked):
  """A privacy filter: the orders of the Renyi divergence that are added up.

  Attributes:
    orders: Each above 1.
    shares: The share of delta that each order has; they sum to at most 1.
  """

  orders: Annotated[tuple[float, ...], _numbers]
  shares: Annotated[tuple[float, ...], _numbers]

  def __post_init__(self):
    """Also checks that orders and shares fit."""
    super().__post_init__()
    if len(self.orders) != len(self.shares):
      raise wire.ProtocolError("orders and shares must have one length")
    if min(self.orders) <= 1 or sum(self.shares) > 1 + 1e-12:
      raise wire.ProtocolError("orders must be above 1, shares at most 1")

  @classmethod
  def of(cls, max_epsilon: float, delta: float) -> "Filter":
    """Returns the filter for a number that is fixed beforehand.

    Args:
      max_epsilon: The most that all answers together may cost; `math.inf` if
        no such number is fixed.
      delta: Of (epsilon, delta).
    """
    if math.isinf(max_epsilon):
      return cls(_ORDERS, (1 / len(_ORDERS),) * len(_ORDERS))
    # At this order most Gaussian noise, of divergence proportional to it, fits.
    room = max_epsilon - _overhead(_CANDIDATES, (1 - _PART) * delta)
    best = float(_CANDIDATES[np.argmax(room / _CANDIDATES)])
    shares = (_PART / len(_ORDERS),) * len(_ORDERS)
    return cls((best, *_ORDERS), (1 - _PART, *shares))

  def epsilon(
    self, costs: Sequence[Cost], delta: float, relation: str
  ) -> float:
    """Returns the epsilon of answers, whose terms may depend on earlier ones.

    If this never exceeds a number that was fixed beforehand, all answers
    together have that epsilon. It is rounded up to 1e-6.

    Args:
      costs: Of all answers.
      delta: Of (epsilon, delta).
      relation: `add_remove` or `replace_one`.

    Raises:
      EcosError: A term is out of range, or no bound is proven.
    """
    if len(costs) == 1:
      return costs[0].epsilon(delta, relation)
    releases = [release for cost in costs for release in cost.releases]
    composition.check_relation(releases, config.Relation(relation))
    if not releases:
      return 0.0
    # [2, orders]: removing and adding a sample.
    sums = np.sum([self._divergences(release) for release in releases], axis=0)
    if relation == config.Relation.REPLACE_ONE.value:
      sums = sums.sum(axis=0, keepdims=True)
    overhead = _overhead(np.array(self.orders), delta * np.array(self.shares))
    epsilon = float((sums + overhead).min(axis=1).max())
    return composition.rounded_up(max(0.0, epsilon))

  def _divergences(self, release: Release) -> np.ndarray:
    once = dataclasses.replace(release, times=1)
    return release.times * _divergences(once, self.orders)


def _overhead(orders: np.ndarray, delta: np.ndarray | float) -> np.ndarray:
  """Returns epsilon less the divergence of an order, for a delta.

  Balle et al. (AISTATS 2020), Theorem 21, and Canonne et al. (2020),
  Proposition 12.
  """
  return np.log1p(-1 / orders) - np.log(orders * delta) / (orders - 1)


@functools.lru_cache(maxsize=1024)
def _divergences(release: Release, orders: tuple[float, ...]) -> np.ndarray:
  """Returns the Renyi divergences of a release, [2, orders].

  Those of removing a sample and of adding one, summed over all outcomes.
  """
  absent, present = composition.log_pair(release, max(orders))

  def divergence(p: np.ndarray, q: np.ndarray, order: float) -> float:
    terms = order * p + (1 - order) * q
    most = terms.max()
    return (most + math.log(np.exp(terms - most).sum())) / (order - 1)

  return _NUMERICAL + np.array(
    [
      [divergence(p, q, order) for order in orders]
      for p, q in ((present, absent), (absent, present))
    ]
  )

import math

import dp_accounting
from dp_accounting import rdp
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.privacy import composition
from ecos_jax.privacy import filter as filter_lib
from tests.privacy import adversary

ADD_REMOVE, REPLACE_ONE = "add_remove", "replace_one"
Release = composition.Release


def _cost(*releases):
  return composition.Cost(releases)


def _total(costs, delta=1e-5, relation=ADD_REMOVE, max_epsilon=math.inf):
  chosen = filter_lib.Filter.of(max_epsilon, delta)
  return chosen.epsilon(costs, delta, relation)


def _fitted(costs, delta=1e-5, relation=ADD_REMOVE):
  """Returns the smallest number, fixed beforehand, that allows the answers."""
  epsilon = 1.0
  for _ in range(30):
    epsilon = _total(costs, delta, relation, epsilon)
  return epsilon + 1e-6


def test_answers_at_different_terms_cost_little_more_than_fixed_ones():
  twenty = [_cost(Release(10 + i / 10, 0.8)) for i in range(20)]
  assert 1.2596 < _fitted(twenty) <= 1.38
  two = [_cost(Release(10.0, 0.8)), _cost(Release(5.0, 0.8))]
  assert 0.6760 < _fitted(two) <= 0.75
  # Long before a budget is used up, the total is not far above either.
  assert _total(two, max_epsilon=10.0) < 1.0
  assert _total(two) < 0.91


def test_one_answer_costs_what_it_states():
  one = _cost(Release(10.0, 0.8))
  assert _total([]) == 0.0
  assert _total([one]) == one.epsilon(1e-5, ADD_REMOVE)
  assert _total([one, one]) > (one + one).epsilon(1e-5, ADD_REMOVE)


def test_totals_agree_with_dp_accountings_own_divergences():
  # Scores, labels and other scores; 9 orders with equal shares of delta.
  costs = [
    _cost(Release(10.0, 0.8)),
    _cost(Release(53.0, 0.5, times=500), Release(25.0, 0.5, 2, times=100)),
    _cost(Release(7.0, 1.0)),
  ]
  orders = [1 + 2.0**k for k in range(-1, 8)]
  accountant = rdp.RdpAccountant(
    orders, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  )
  for release in (r for cost in costs for r in cost.releases):
    noise = dp_accounting.GaussianDpEvent(release.sigma / release.bins**0.5)
    event = dp_accounting.PoissonSampledDpEvent(release.gamma, noise)
    accountant.compose(event, release.times)
  expected = accountant.get_epsilon(1e-5 / 9)
  assert _total(costs) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("order", [1.5, 2.0, 30.0, 129.0])
@pytest.mark.parametrize(
  ("sigma", "gamma", "bins"), [(0.25, 0.3, 1), (3.0, 1.0, 1), (0.7, 0.5, 2)]
)
def test_divergences_agree_with_brute_force(sigma, gamma, bins, order):
  # As far out as the powers reach, straight from the definition.
  x = np.arange(-700, 701)
  up = -(x**2) / (2 * sigma**2)
  up -= np.log(np.exp(up).sum())
  p0, p1 = up, np.roll(up, 1)
  if bins == 2:
    x = np.arange(-330, 331)
    up = -(x**2) / (2 * sigma**2)
    up -= np.log(np.exp(up).sum())
    p0 = np.add.outer(up, up)
    p1 = np.add.outer(np.roll(up, 1), np.roll(up, -1))
    inside = (slice(1, -1), slice(1, -1))
    p0, p1 = p0[inside], p1[inside]
  else:
    p0, p1 = p0[1:], p1[1:]
  m = p1
  if gamma < 1:
    m = np.logaddexp(math.log1p(-gamma) + p0, math.log(gamma) + p1)
  for row, (p, q) in enumerate(((m, p0), (p0, m))):
    terms = order * p + (1 - order) * q
    expected = np.logaddexp.reduce(terms.ravel()) / (order - 1)
    [ours] = filter_lib._divergences(Release(sigma, gamma, bins), (order,))[row]
    assert 0 <= ours - expected < 1e-9 * (1 + expected)


def test_divergences_of_several_votes_agree_with_brute_force():
  # One sample adds 1, 1 and 2 to three counts.
  x, order, gamma = np.arange(-40, 41), 8.0, 0.5
  grid = np.meshgrid(x, x, x, indexing="ij")
  law = [
    sum(-((g - s) ** 2) / 2 for g, s in zip(grid, by, strict=True))
    for by in ((0, 0, 0), (1, 1, 2))
  ]
  p0, p1 = (mass - np.logaddexp.reduce(mass.ravel()) for mass in law)
  m = np.logaddexp(math.log(1 - gamma) + p0, math.log(gamma) + p1)
  release = Release(1.0, gamma, bins=2, weight=2)
  ours = filter_lib._divergences(release, (order,))
  for [value], (p, q) in zip(ours, ((m, p0), (p0, m)), strict=True):
    terms = order * p + (1 - order) * q
    expected = np.logaddexp.reduce(terms.ravel()) / (order - 1)
    assert value == pytest.approx(expected, rel=1e-9)


def test_an_order_and_its_share_decide():
  # By hand: Gaussians of scale 50 have the divergence order / (2 * 50^2).
  costs = 3 * [_cost(Release(50.0, 1.0))]
  order, delta = 11.0, 1e-6
  chosen = filter_lib.Filter((order,), (0.5,))
  overhead = math.log(10 / 11) - math.log(11 * delta / 2) / 10
  expected = 3 * order / 5000 + overhead
  assert chosen.epsilon(costs, delta, ADD_REMOVE) == pytest.approx(expected)
  # A replacement adds a sample and removes one.
  expected = 6 * order / 5000 + overhead
  assert chosen.epsilon(costs, delta, REPLACE_ONE) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("orders", "shares"),
  [
    ([], []),
    ([2.0], []),
    ([1.0], [1.0]),
    ([2.0, 3.0], [0.6, 0.6]),
    ([2.0], [-1.0]),
    ([math.nan], [1.0]),
    (["2"], [1.0]),
    (2.0, 1.0),
  ],
)
def test_what_is_no_filter_is_refused(orders, shares):
  with pytest.raises(errors.EcosError, match=r"orders|shares"):
    filter_lib.Filter(orders, shares)


def test_votes_of_neighbours_claim_nothing_for_a_replacement():
  costs = 2 * [_cost(Release(25.0, 0.15, bins=2))]
  with pytest.raises(errors.EcosError, match="add_remove"):
    _total(costs, relation=REPLACE_ONE)


# What a server does that chooses terms by what it has seen.


def _gains(options, costs, delta, relation, most=5):
  """Returns the delta of the worst server that keeps the filter's budget."""
  epsilon = _fitted(costs, delta, relation)

  def allowed(asked):
    given = [
      _cost(option)
      for option, times in zip(options, asked, strict=True)
      for _ in range(times)
    ]
    total = _total(given, delta, relation, epsilon)
    return len(given) <= most and total <= epsilon

  return adversary.delta(options, allowed, epsilon, relation)


@pytest.mark.parametrize(
  ("options", "relation"),
  [
    # Much noise on all samples, or little on few.
    ([Release(2.0, 1.0), Release(1.0, 0.2)], ADD_REMOVE),
    ([Release(5.0, 1.0), Release(1.5, 0.1)], ADD_REMOVE),
    ([Release(10.0, 0.8), Release(5.0, 0.8), Release(1.0, 0.05)], ADD_REMOVE),
    ([Release(2.0, 0.5), Release(3.0, 0.3, bins=2)], ADD_REMOVE),
    # Counts, signed votes beside counts, and labels.
    (
      [Release(2.0, 0.5), Release.of(2.5, 0.8, 3, 2), Release(3.0, 0.3, 2)],
      ADD_REMOVE,
    ),
    ([Release(3.0, 0.8), Release(1.0, 0.1)], REPLACE_ONE),
  ],
)
def test_no_server_that_adapts_gets_more_than_delta(options, relation):
  delta = 1e-3
  costs = [_cost(option) for option in (*options, options[0])]
  got, answers = _gains(options, costs, delta, relation)
  assert answers >= 3
  assert 0.05 * delta < got <= delta


@pytest.mark.parametrize(
  ("first", "other", "rare"),
  [(2.0, 2.0, (0.4, 0.0249)), (5.0, 4.0, (0.4, 0.0218))],
)
def test_composed_terms_that_adapt_give_that_server_more(first, other, rare):
  # Much noise on all samples, or little on few: of one price, and a server
  # does better by choosing in the light of the first answer.
  delta = 1e-3
  options = (Release(first, 1.0), Release(other, 1.0), Release(*rare))
  epsilon = max(
    _cost(options[0], option).epsilon(delta, ADD_REMOVE)
    for option in options[1:]
  )
  asked = ((1, 0, 0), (1, 1, 0), (1, 0, 1))
  got, _ = adversary.delta(options, asked.__contains__, epsilon, ADD_REMOVE)
  assert got > 1.4 * delta

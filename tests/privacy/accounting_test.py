import doctest
from fractions import Fraction
import math
from pathlib import Path
import re

import dp_accounting
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.privacy import accounting

SIGMAS = (5, 10, 25, 40, 55, 70)
GAMMAS = (0.2, 0.8, 1.0)
DELTA = 1e-5
PAPER = {5: 1.229, 10: 0.583, 25: 0.2245, 40: 0.1385, 55: 0.101, 70: 0.0785}
ADD_REMOVE, REPLACE_ONE = "add_remove", "replace_one"


def _noise(sigma, gamma, moved=1):
  """Returns p0 and m on one grid of integers, straight from the definition."""
  x = np.arange(-int(12 * sigma) - 9, int(12 * sigma) + 10)
  p0 = np.exp(-(x**2) / (2 * sigma**2))
  p1 = np.exp(-((x - moved) ** 2) / (2 * sigma**2))
  total = p0.sum()
  return p0 / total, ((1 - gamma) * p0 + gamma * p1) / total


def _delta(sigma, gamma, epsilon, relation):
  """Returns the hockey-stick divergence, summed over all outputs."""
  p0, m = _noise(sigma, gamma)
  grow = np.exp(epsilon)
  if relation == ADD_REMOVE:
    remove = np.maximum(m - grow * p0, 0).sum()
    return max(remove, np.maximum(p0 - grow * m, 0).sum())
  # The counts of both bins: (m, p0) against (p0, m).
  total = 0.0
  for v in range(len(p0)):
    total += np.maximum(m * p0[v] - grow * p0 * m[v], 0).sum()
  return total


@pytest.mark.parametrize("relation", [ADD_REMOVE, REPLACE_ONE])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_epsilon_agrees_with_brute_force_and_is_below_the_papers_bound(
  sigma, gamma, relation
):
  epsilon = accounting.epsilon(sigma, gamma, DELTA, relation)
  assert _delta(sigma, gamma, epsilon, relation) <= DELTA
  assert _delta(sigma, gamma, epsilon - 1e-4, relation) > DELTA
  assert epsilon <= accounting.paper_epsilon(sigma, gamma, DELTA)


@pytest.mark.parametrize("relation", [ADD_REMOVE, REPLACE_ONE])
@pytest.mark.parametrize("delta", [1e-9, 1e-3])
@pytest.mark.parametrize("sigma", [0.25, 0.7, 1.0, 2.5])
def test_epsilon_of_little_noise_is_an_upper_bound(sigma, delta, relation):
  epsilon = accounting.epsilon(sigma, 0.5, delta, relation)
  assert _delta(sigma, 0.5, epsilon, relation) <= delta
  # A tenth of delta is what the margin for rounding errors may cost.
  assert _delta(sigma, 0.5, 0.999 * epsilon, relation) > 0.85 * delta


@pytest.mark.parametrize("sigma", SIGMAS)
def test_paper_epsilon_gives_the_papers_values(sigma):
  assert accounting.paper_epsilon(sigma, 0.8, DELTA) == pytest.approx(
    PAPER[sigma], rel=0.01
  )


def test_replacing_is_no_worse_on_other_pairs_of_datasets():
  # Other samples add the same random counts on both sides: a mixture of
  # shifted pairs, which is no easier to tell apart than the pair itself.
  sigma, gamma, grow = 2.0, 0.6, np.exp(0.7)
  p0, m = _noise(sigma, gamma)
  pair = np.maximum(np.outer(m, p0) - grow * np.outer(p0, m), 0).sum()
  present, absent = np.outer(m, p0), np.outer(p0, m)
  others = [(0, 0, 0.4), (1, 0, 0.3), (0, 1, 0.2), (1, 1, 0.1)]
  mixed = sum(
    weight * (np.roll(present, s, (0, 1)) - grow * np.roll(absent, s, (0, 1)))
    for *s, weight in others
  )
  assert np.maximum(mixed, 0).sum() <= pair * (1 + 1e-9)


def test_both_orders_of_a_replacement_cost_the_same():
  p0, m = _noise(1.5, 0.3)
  forth = np.maximum(np.outer(m, p0) - 2 * np.outer(p0, m), 0).sum()
  back = np.maximum(np.outer(p0, m) - 2 * np.outer(m, p0), 0).sum()
  assert forth == pytest.approx(back, rel=1e-12)


@pytest.mark.parametrize(
  ("times", "delta"), [(2, 1e-5), (30, 1e-9), (1000, 1e-9)]
)
def test_composition_agrees_with_the_closed_form_of_a_gaussian(times, delta):
  # With much noise the discrete Gaussian is as the continuous one, of which
  # so many releases are one with less noise.
  cost = accounting.Cost((accounting.Release(60.0, 1.0, times=times),))
  exact = dp_accounting.get_epsilon_gaussian(60.0 / times**0.5, delta)
  assert exact <= cost.epsilon(delta, ADD_REMOVE) <= exact * 1.02 + 1e-4
  exact = dp_accounting.get_epsilon_gaussian(60.0 / (2 * times) ** 0.5, delta)
  assert exact <= cost.epsilon(delta, REPLACE_ONE) <= exact * 1.02 + 1e-4


def test_composition_agrees_with_brute_force():
  # Two answers with different noise: the product distributions, summed.
  a, b = _noise(4.0, 0.5), _noise(7.0, 0.9)
  cost = accounting.Cost((accounting.Release(4.0, 0.5),)) + accounting.Cost(
    (accounting.Release(7.0, 0.9),)
  )
  epsilon = cost.epsilon(DELTA, ADD_REMOVE)

  def delta(at):
    grow = np.exp(at)
    p0, m = np.outer(a[0], b[0]), np.outer(a[1], b[1])
    remove = np.maximum(m - grow * p0, 0).sum()
    return max(remove, np.maximum(p0 - grow * m, 0).sum())

  assert delta(epsilon) <= DELTA < delta(epsilon - 2e-4)


@pytest.mark.parametrize(
  ("sigma", "part", "gamma"),
  [(10.0, 0.2, 0.8), (25.0, 0.2, 0.8), (6.0, 0.5, 0.2), (2.0, 0.05, 1.0)],
)
def test_two_answers_cost_what_one_does_by_brute_force(sigma, part, gamma):
  epsilon = accounting.epsilon(sigma, gamma, DELTA, ADD_REMOVE)
  first, second = accounting.split(sigma, part, gamma, DELTA, ADD_REMOVE)
  assert second**2 / (first**2 + second**2) == pytest.approx(part)
  a, b = _noise(first, gamma), _noise(second, gamma)
  p0, m = np.outer(a[0], b[0]), np.outer(a[1], b[1])

  def delta(at):
    grow = np.exp(at)
    remove = np.maximum(m - grow * p0, 0).sum()
    return max(remove, np.maximum(p0 - grow * m, 0).sum())

  assert delta(epsilon) <= DELTA < delta(0.999 * epsilon)


@pytest.mark.parametrize("part", [0.2, 0.5])
def test_two_answers_cost_what_one_does_for_a_replacement(part):
  # With much noise the discrete Gaussian costs what the Gaussian does.
  epsilon = accounting.epsilon(20.0, 1.0, DELTA, REPLACE_ONE)
  pair = accounting.split(20.0, part, 1.0, DELTA, REPLACE_ONE)
  multiplier = (2 * sum(s**-2 for s in pair)) ** -0.5
  exact = dp_accounting.get_epsilon_gaussian(multiplier, DELTA)
  assert 0.999 * epsilon < exact <= epsilon


def test_splitting_at_the_limits():
  first, second = accounting.split(0.25, 0.5, 1.0, 1e-9, REPLACE_ONE)
  assert 0.25 < first == second < 0.4
  with pytest.raises(errors.EcosError, match="sigma"):
    accounting.split(0.0, 0.2, 0.8, DELTA, ADD_REMOVE)


def test_composition_costs_less_than_the_sum_and_ignores_order():
  one = accounting.Cost((accounting.Release(10.0, 0.8),))
  two = accounting.Cost((accounting.Release(20.0, 0.5),))
  both = (one + two).epsilon(DELTA, REPLACE_ONE)
  assert both == (two + one).epsilon(DELTA, REPLACE_ONE)
  alone = [cost.epsilon(DELTA, REPLACE_ONE) for cost in (one, two)]
  assert max(alone) < both < sum(alone)
  assert accounting.Cost().epsilon(DELTA, ADD_REMOVE) == 0.0


def test_a_total_claims_no_more_than_terms_chosen_adaptively_allow():
  ten, five = (
    accounting.Cost((accounting.Release(sigma, 0.8),)) for sigma in (10.0, 5.0)
  )
  total = accounting.Cost.total
  assert total([], DELTA, ADD_REMOVE) == 0.0
  assert total([ten], DELTA, ADD_REMOVE) == ten.epsilon(DELTA, ADD_REMOVE)
  # Composed at half of delta, or added at shares that sum to the other half.
  composed = (ten + ten + ten).epsilon(DELTA / 2, ADD_REMOVE)
  assert total(3 * [ten], DELTA, ADD_REMOVE) == composed
  costs = [ten, five, ten]
  parts = zip(costs, (4, 12, 24), strict=True)
  added = sum(cost.epsilon(DELTA / n, ADD_REMOVE) for cost, n in parts)
  assert total(costs, DELTA, ADD_REMOVE) == pytest.approx(added, abs=1e-12)
  assert added > (ten + five + ten).epsilon(DELTA, ADD_REMOVE)
  # Where the shares get too small nothing is claimed.
  assert total(costs, 4e-9, ADD_REMOVE) == math.inf


def _chosen_delta(first, options, epsilon):
  """The delta of two answers, the second's terms chosen by the first's outcome.

  By brute force: for every outcome the option that is the worse one.
  """

  def pair(release):
    _, log_mass = accounting.log_noise(release.sigma)
    p0 = np.exp(np.append(log_mass, -np.inf))
    p1 = np.roll(p0, 1)
    return p0, (1 - release.gamma) * p0 + release.gamma * p1

  deltas = []
  for order in (1, -1):
    q, p = pair(first)[::order]
    worst = np.zeros(len(p))
    for option in options:
      b, a = pair(option)[::order]
      excess = np.outer(p, a) - math.exp(epsilon) * np.outer(q, b)
      worst = np.maximum(worst, np.maximum(excess, 0).sum(1))
    deltas.append(worst.sum())
  return max(deltas)


@pytest.mark.parametrize(
  ("first", "other", "rare"),
  [(2.0, 2.0, (0.4, 0.0249)), (5.0, 4.0, (0.4, 0.0218))],
)
def test_terms_chosen_by_an_outcome_break_composition_but_not_the_total(
  first, other, rare
):
  # Much noise on all samples, or little on few: of one price, and a server
  # does better by choosing in the light of the first answer.
  delta, release = 1e-3, accounting.Release
  first, options = release(first, 1.0), (release(other, 1.0), release(*rare))
  costs = [
    [accounting.Cost((first,)), accounting.Cost((option,))]
    for option in options
  ]
  composed = max(
    sum(c, accounting.Cost()).epsilon(delta, ADD_REMOVE) for c in costs
  )
  assert _chosen_delta(first, options, composed) > 1.4 * delta
  # With a budget between the totals only the cheaper option is open.
  totals = [accounting.Cost.total(c, delta, ADD_REMOVE) for c in costs]
  for budget in totals:
    allowed = [
      option
      for option, total in zip(options, totals, strict=True)
      if total <= budget
    ]
    assert _chosen_delta(first, allowed, budget) <= delta


@pytest.mark.parametrize(("sigma", "gamma"), [(0.6, 0.5), (3.0, 0.15)])
def test_votes_of_neighbours_agree_with_brute_force(sigma, gamma):
  # Private-kNN: the sample's vote comes and a neighbour's goes.
  cost = accounting.Cost((accounting.Release(sigma, gamma, moved=2),))
  epsilon = cost.epsilon(DELTA, ADD_REMOVE)
  up, _ = _noise(sigma, 0.0)
  p0 = np.outer(up, up)
  moved = np.outer(np.roll(up, 1), np.roll(up, -1))
  m = (1 - gamma) * p0 + gamma * moved

  def delta(at):
    grow = np.exp(at)
    remove = np.maximum(m - grow * p0, 0).sum()
    return max(remove, np.maximum(p0 - grow * m, 0).sum())

  assert delta(epsilon) <= DELTA < delta(epsilon - 2e-4)


def test_votes_of_neighbours_claim_nothing_for_a_replacement():
  cost = accounting.Cost((accounting.Release(25.0, 0.15, moved=2),))
  with pytest.raises(errors.EcosError, match="add_remove"):
    cost.epsilon(DELTA, REPLACE_ONE)


@pytest.mark.parametrize("relation", [ADD_REMOVE, REPLACE_ONE])
@pytest.mark.parametrize("target", [0.1, 0.5, 1.0, 4.0, 20.0])
def test_sigma_keeps_the_claim_and_a_step_less_does_not(target, relation):
  sigma = accounting.sigma(target, 0.8, DELTA, relation)
  assert sigma % accounting.SIGMA_STEP == 0
  assert accounting.epsilon(sigma, 0.8, DELTA, relation) <= target
  below = sigma - accounting.SIGMA_STEP
  assert accounting.epsilon(below, 0.8, DELTA, relation) > target


def test_sigma_has_limits():
  assert accounting.sigma(1e4, 0.8, DELTA, ADD_REMOVE) == 0.25
  with pytest.raises(errors.EcosError, match="sigma above"):
    accounting.sigma(1e-5, 1.0, DELTA, REPLACE_ONE)
  for bad in (0.0, -1.0, float("nan"), float("inf")):
    with pytest.raises(errors.EcosError, match="epsilon must be positive"):
      accounting.sigma(bad, 0.8, DELTA, ADD_REMOVE)


@hypothesis.settings(deadline=None, max_examples=10)
# From 2 on: noise of few values is not so. At sigma 0.5 and gamma 1/32 one of
# them falls below delta as a whole, and epsilon is lower than at 0.55.
@hypothesis.given(
  st.floats(2.0, 20.0), st.floats(1.01, 2.0), st.floats(0.01, 1.0)
)
def test_more_noise_and_fewer_samples_cost_less(sigma, factor, gamma):
  cost = accounting.epsilon(sigma, gamma, DELTA, ADD_REMOVE)
  # Losses are rounded to a grid: equal up to the width of its steps.
  slack = 1e-4 * cost + 1e-6
  noisier = accounting.epsilon(sigma * factor, gamma, DELTA, ADD_REMOVE)
  assert noisier <= cost + slack
  fewer = accounting.epsilon(sigma, gamma / factor, DELTA, ADD_REMOVE)
  assert fewer <= cost + slack
  assert cost <= accounting.epsilon(sigma, gamma, DELTA, REPLACE_ONE) + slack


@pytest.mark.parametrize(
  ("sigma", "gamma", "delta", "relation", "field"),
  [
    (0.0, 0.8, DELTA, ADD_REMOVE, "sigma"),
    (float("nan"), 0.8, DELTA, ADD_REMOVE, "sigma"),
    (5.0, 0.0, DELTA, ADD_REMOVE, "gamma"),
    (5.0, 1.1, DELTA, ADD_REMOVE, "gamma"),
    (5.0, 0.8, 0.0, ADD_REMOVE, "delta"),
    (5.0, 0.8, DELTA, "bounded", "relation"),
    (5.0, 2.0**-12, 0.1, ADD_REMOVE, "gamma must be above delta"),
  ],
)
def test_terms_out_of_range_are_refused(sigma, gamma, delta, relation, field):
  with pytest.raises(errors.EcosError, match=field):
    accounting.epsilon(sigma, gamma, delta, relation)


def test_the_noise_is_what_its_definition_says():
  for sigma in (0.3, 1.7):
    x, log_mass = accounting.log_noise(sigma)
    ratio = np.exp(log_mass[x == 2] - log_mass[x == 1])
    assert ratio == pytest.approx(np.exp(-3 / (2 * sigma**2)))
    assert np.exp(log_mass).sum() == pytest.approx(1, abs=1e-12)
    x2, log_mass2 = accounting.log_noise(sigma, moved=2)
    full = np.convolve(np.exp(log_mass), np.exp(log_mass))
    center = len(full) // 2
    for k in range(-4, 5):
      assert np.exp(log_mass2[x2 == k]) == pytest.approx(full[center + k])


def test_the_table_in_the_documentation_is_what_is_computed():
  text = Path("docs/privacy.md").read_text()
  rows = re.findall(
    r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
    text,
    re.MULTILINE,
  )
  assert len(rows) == len(SIGMAS) * len(GAMMAS)
  for sigma, gamma, add_remove, replace_one, paper in rows:
    terms = float(sigma), float(gamma), DELTA
    computed = (
      accounting.epsilon(*terms, ADD_REMOVE),
      accounting.epsilon(*terms, REPLACE_ONE),
      accounting.paper_epsilon(*terms),
    )
    shown = float(add_remove), float(replace_one), float(paper)
    assert shown == tuple(math.ceil(value * 1e4) / 1e4 for value in computed)


def test_the_example_in_the_module_is_true():
  failed, tried = doctest.testmod(accounting)
  assert tried and not failed


@hypothesis.given(st.floats(2.0**-12, 1.0))
def test_every_gamma_is_drawn_exactly(gamma):
  assert (Fraction(gamma) * 2**64).denominator == 1

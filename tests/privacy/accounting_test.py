import dataclasses
from fractions import Fraction
import functools
import itertools
import math
from pathlib import Path
import re

import dp_accounting
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.privacy import accounting
from tests.privacy import references

SIGMAS = (5, 10, 25, 40, 55, 70)
GAMMAS = (0.2, 0.8, 1.0)
DELTA = 1e-5
PAPER = {5: 1.229, 10: 0.583, 25: 0.2245, 40: 0.1385, 55: 0.101, 70: 0.0785}
ADD_REMOVE, REPLACE_ONE = "add_remove", "replace_one"


@pytest.mark.parametrize("relation", [ADD_REMOVE, REPLACE_ONE])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_epsilon_agrees_with_brute_force_and_is_below_the_papers_bound(
  sigma, gamma, relation
):
  epsilon = accounting.epsilon(sigma, gamma, DELTA, relation)
  assert references.delta(sigma, gamma, epsilon, relation) <= DELTA
  assert references.delta(sigma, gamma, epsilon - 1e-4, relation) > DELTA
  assert epsilon <= accounting.paper_epsilon(sigma, gamma, DELTA)


@pytest.mark.parametrize("relation", [ADD_REMOVE, REPLACE_ONE])
@pytest.mark.parametrize("delta", [1e-9, 1e-3])
@pytest.mark.parametrize("sigma", [0.25, 0.7, 1.0, 2.5])
def test_epsilon_of_little_noise_is_an_upper_bound(sigma, delta, relation):
  epsilon = accounting.epsilon(sigma, 0.5, delta, relation)
  assert references.delta(sigma, 0.5, epsilon, relation) <= delta
  # A tenth of delta is what the margin for rounding errors may cost.
  assert references.delta(sigma, 0.5, 0.999 * epsilon, relation) > 0.85 * delta


@pytest.mark.parametrize("sigma", SIGMAS)
def test_paper_epsilon_gives_the_papers_values(sigma):
  assert accounting.paper_epsilon(sigma, 0.8, DELTA) == pytest.approx(
    PAPER[sigma], rel=0.01
  )


@pytest.mark.parametrize(
  ("sigma", "part", "gamma"),
  [(10.0, 0.2, 0.8), (25.0, 0.2, 0.8), (6.0, 0.5, 0.2), (2.0, 0.05, 1.0)],
)
def test_two_answers_cost_what_one_does_by_brute_force(sigma, part, gamma):
  epsilon = accounting.epsilon(sigma, gamma, DELTA, ADD_REMOVE)
  first, second = accounting.split(sigma, part, gamma, DELTA, ADD_REMOVE)
  assert second**2 / (first**2 + second**2) == pytest.approx(part)
  a, b = references.noise(first, gamma), references.noise(second, gamma)
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
    with pytest.raises(errors.EcosError, match="`epsilon` must be positive"):
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


@hypothesis.given(st.floats(2.0**-12, 1.0))
def test_every_gamma_is_drawn_exactly(gamma):
  assert (Fraction(gamma) * 2**64).denominator == 1


# Groups of samples.


def _counts(sigma, gamma):
  return accounting.Cost((accounting.Release(sigma, gamma),))


def _group(votes, scale, gamma):
  """The outputs without and with samples of these votes, straight from it.

  Args:
    votes: What each sample adds to the sums, [k, n].
    scale: Of the noise on each sum.
    gamma: The probability that a sample is drawn.
  """
  votes = np.array(votes)
  reach = int(12 * scale) + 9 + int(np.abs(votes).sum(0).max())
  x = np.arange(-reach, reach + 1)
  p0 = np.exp(-(x**2) / (2 * scale**2))
  p0 /= p0.sum()
  shape = votes.shape[1] * [len(x)]
  present = np.zeros(shape)
  for coins in itertools.product((0, 1), repeat=len(votes)):
    weight = gamma ** sum(coins) * (1 - gamma) ** (len(votes) - sum(coins))
    sums = [np.roll(p0, total) for total in coins @ votes]
    present += weight * functools.reduce(np.multiply.outer, sums)
  return functools.reduce(np.multiply.outer, len(shape) * [p0]), present


def _one_bin(size):
  return [[1]] * size


def _hockey_stick(pair, epsilon):
  return max(
    np.maximum(p - math.exp(epsilon) * q, 0).sum()
    for p, q in (pair, pair[::-1])
  )


@pytest.mark.parametrize("gamma", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("sigma", [0.3, 0.7, 2.0, 6.0])
def test_a_group_costs_what_brute_force_says_and_one_bin_is_the_worst(
  sigma, gamma
):
  for size in (1, 2, 4):
    delta = 1e-4
    epsilon = accounting.group_epsilon(_counts(sigma, gamma), delta, size)
    together = _group(_one_bin(size), sigma, gamma)
    assert _hockey_stick(together, epsilon) <= delta
    assert _hockey_stick(together, epsilon - 1e-5) > delta
  # However 4 samples lie in two bins, no event tells more.
  left, right = [1, 0], [0, 1]
  for votes in (
    [left, left, right, right],
    [left, right, right, right],
    [left, right],
  ):
    other = _group(votes, sigma, gamma)
    one = _group(_one_bin(len(votes)), sigma, gamma)
    for epsilon in (0.05, 0.3, 1.0, 3.0, 8.0):
      bound = _hockey_stick(one, epsilon)
      assert _hockey_stick(other, epsilon) <= bound * (1 + 1e-9) + 1e-13


@pytest.mark.parametrize(
  ("sigma", "gamma", "size", "votes", "weight"),
  [
    (0.5, 0.8, 3, (1, -1), 0),
    (1.5, 0.4, 4, (-1, 1), 0),
    (0.6, 0.8, 3, (1, -1, 1), 0),
    (0.5, 0.6, 2, (-1,), 3),
    (0.4, 1.0, 3, (1, 1), 2),
  ],
)
def test_a_group_s_signed_votes_agree_with_brute_force(
  sigma, gamma, size, votes, weight
):
  release = accounting.Release.of(sigma, gamma, len(votes), weight)
  cost, delta = accounting.Cost((release,)), 1e-4
  epsilon = accounting.group_epsilon(cost, delta, size)
  v = (*votes, weight) if weight else votes
  same = _group([v] * size, release.sigma, gamma)
  assert _hockey_stick(same, epsilon) <= delta
  assert _hockey_stick(same, epsilon - 1e-5) > delta
  # With other signs, or with fewer votes, a sample tells no more.
  flipped = tuple(-x for x in v)
  fewer = (0, *v[1:])
  for mixed in ([flipped], [fewer], [flipped, fewer]):
    other = _group([*mixed, *[v] * size][:size], release.sigma, gamma)
    assert _hockey_stick(other, epsilon) <= delta


def _nearest_votes(own, others, k, gamma):
  """The histograms of two classes of the k nearest drawn, with probabilities.

  Args:
    own, others: Samples, (distance, class).
    k: Number of neighbours.
    gamma: The probability that a sample is drawn.
  """
  samples = sorted(own + others)
  found = {}
  for coins in itertools.product((0, 1), repeat=len(samples)):
    drawn = [c for (_, c), coin in zip(samples, coins, strict=True) if coin]
    counts = (drawn[:k].count(0), drawn[:k].count(1))
    weight = gamma ** sum(coins) * (1 - gamma) ** (len(coins) - sum(coins))
    found[counts] = found.get(counts, 0.0) + weight
  return found


def _noised(votes, sigma, *, screened):
  x = np.arange(-int(9 * sigma) - 6, int(9 * sigma) + 12)
  p0 = np.exp(-(x**2) / (2 * sigma**2))
  p0 /= p0.sum()
  if screened:
    return sum(w * np.roll(p0, max(counts)) for counts, w in votes.items())
  return sum(
    w * np.multiply.outer(*(np.roll(p0, count) for count in counts))
    for counts, w in votes.items()
  )


def _label_cost(sigma, gamma, *, screened):
  terms = messages.LabelTerms(
    2, 5, sigma, sigma, 0.0, gamma, 1e-4, "add_remove"
  )
  return accounting.labels(terms, int(screened), int(not screened))


@pytest.mark.parametrize("screened", [True, False])
@pytest.mark.parametrize("gamma", [0.4, 1.0])
def test_a_group_s_labels_cost_no_more_than_claimed(screened, gamma):
  random = np.random.default_rng(7)
  sigma, delta = 0.8, 1e-4
  cost = _label_cost(sigma, gamma, screened=screened)
  largest = 0.0
  for size in (1, 2, 3):
    epsilon = accounting.group_epsilon(cost, delta, size)
    for trial in range(12):
      n = int(random.integers(0, 6))
      others = [
        (1 + float(d), int(c)) for d, c in random.random((n, 2)).round()
      ]
      near = 2 * random.random((size, 2)).round(1)
      own = [(float(d), int(c > 1)) for d, c in near]
      if trial == 0:  # all of a kind that displaces all others
        others, own = [(1.0, 0)] * 4, [(0.0, 1)] * size
      pair = [
        _noised(
          _nearest_votes(samples, others, 4, gamma), sigma, screened=screened
        )
        for samples in ([], own)
      ]
      got = _hockey_stick(pair, epsilon)
      assert got <= delta
      largest = max(largest, got)
  if gamma == 1.0 and not screened:
    assert largest > 0.9 * delta


def test_a_group_s_answers_compose_as_brute_force_says():
  # Counts, then other counts, of 3 samples; the product of both, summed.
  cost = _counts(3.0, 0.5) + _counts(5.0, 0.9)
  epsilon = accounting.group_epsilon(cost, 1e-4, 3)
  a, b = _group(_one_bin(3), 3.0, 0.5), _group(_one_bin(3), 5.0, 0.9)
  pair = [np.outer(one, other) for one, other in zip(a, b, strict=True)]
  assert _hockey_stick(pair, epsilon) <= 1e-4
  assert _hockey_stick(pair, epsilon - 1e-3) > 1e-4


def test_a_group_has_no_bound_for_replacements():
  [release] = _counts(3.0, 0.5).releases
  group = accounting.Cost((dataclasses.replace(release, group=2),))
  with pytest.raises(errors.EcosError, match="add_remove"):
    group.epsilon(DELTA, REPLACE_ONE)


def test_a_group_at_the_default_terms():
  one = accounting.epsilon(10.0, 0.8, DELTA, "add_remove")
  got = accounting.group_epsilon(_counts(10.0, 0.8), DELTA, 1)
  assert got == pytest.approx(one, abs=1e-4)
  # Much more than k times as much.
  for size, epsilon in ((10, 3.53), (30, 13.13), (100, 69.04)):
    got = accounting.group_epsilon(_counts(10.0, 0.8), DELTA, size)
    assert got == pytest.approx(epsilon, abs=6e-3)
    assert got > size * one
  # With all samples drawn it is a Gaussian of sensitivity k.
  exact = dp_accounting.get_epsilon_gaussian(40.0 / 10, 1e-5)
  got = accounting.group_epsilon(_counts(40.0, 1.0), 1e-5, 10)
  assert got == pytest.approx(exact, rel=2e-3)
  for size in (0, 10**6):
    with pytest.raises(errors.EcosError, match="`size`"):
      accounting.group_epsilon(_counts(10.0, 0.8), DELTA, size)
  with pytest.raises(errors.EcosError, match=r"`size` must be in \[1, 127\]"):
    signs = accounting.Release.of(10.0, 0.8, 1025)
    accounting.group_epsilon(accounting.Cost((signs,)), DELTA, 128)
  with pytest.raises(errors.EcosError, match="gamma"):
    accounting.group_epsilon(_counts(10.0, 2.0), 1e-5, 3)


_BOTH = accounting.Release.of(10.0, 0.8, 33, 3)
_LABELS = messages.LabelTerms(10, 150, 53, 25, 0, 0.5, DELTA, "add_remove")


def test_the_table_of_groups_in_the_documentation_is_what_is_computed():
  text = Path("docs/privacy.md").read_text()
  rows = re.findall(
    r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+e-\d+) \| ([\d.]+) "
    r"\| ([\d.]+) \|$",
    text,
    re.MULTILINE,
  )
  assert len(rows) == 7
  for size, epsilon, times, delta, both, labels in rows:
    for shown, cost, digits in (
      (epsilon, _counts(10.0, 0.8), 4),
      (both, accounting.Cost((_BOTH,)), 4),
      (labels, accounting.labels(_LABELS, 5000, 1000), 2),
    ):
      exact = accounting.group_epsilon(cost, DELTA, int(size))
      assert float(shown) == math.ceil(exact * 10**digits) / 10**digits
    assert float(times) == pytest.approx(int(size) * 0.276, abs=0.006)
    # The delta at k times epsilon, from the definition.
    x = np.arange(-130, 131 + int(size))
    p0 = stats.norm.pdf(x, 0, 10)
    drawn = np.arange(int(size) + 1)
    weights = stats.binom.pmf(drawn, int(size), 0.8)
    m = weights @ stats.norm.pdf(x, drawn[:, None], 10)
    grow = math.exp(int(size) * 0.27605)
    orders = ((p0, m), (m, p0))
    found = max(np.maximum(p - grow * q, 0).sum() for p, q in orders)
    assert float(delta) == pytest.approx(found, rel=0.03)

import math
import tracemalloc

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from ecos_jax import errors
from ecos_jax.privacy import composition
from tests.privacy import references

DELTA = 1e-5
ADD_REMOVE, REPLACE_ONE = "add_remove", "replace_one"


def test_replacing_is_no_worse_on_other_pairs_of_datasets():
  # Other samples add the same random counts on both sides: a mixture of
  # shifted pairs, which is no easier to tell apart than the pair itself.
  sigma, gamma, grow = 2.0, 0.6, np.exp(0.7)
  p0, m = references.noise(sigma, gamma)
  pair = np.maximum(np.outer(m, p0) - grow * np.outer(p0, m), 0).sum()
  present, absent = np.outer(m, p0), np.outer(p0, m)
  others = [(0, 0, 0.4), (1, 0, 0.3), (0, 1, 0.2), (1, 1, 0.1)]
  mixed = sum(
    weight * (np.roll(present, s, (0, 1)) - grow * np.roll(absent, s, (0, 1)))
    for *s, weight in others
  )
  assert np.maximum(mixed, 0).sum() <= pair * (1 + 1e-9)


def test_both_orders_of_a_replacement_cost_the_same():
  p0, m = references.noise(1.5, 0.3)
  forth = np.maximum(np.outer(m, p0) - 2 * np.outer(p0, m), 0).sum()
  back = np.maximum(np.outer(p0, m) - 2 * np.outer(m, p0), 0).sum()
  assert forth == pytest.approx(back, rel=1e-12)


@pytest.mark.parametrize(
  ("times", "delta"),
  [(2, 1e-5), (30, 1e-9), (1000, 1e-9), (1_000_000, 1e-8)],
)
def test_composition_agrees_with_the_closed_form_of_a_gaussian(times, delta):
  # With much noise the discrete Gaussian is as the continuous one, of which
  # so many releases are one with less noise.
  cost = composition.Cost((composition.Release(60.0, 1.0, times=times),))
  exact = dp_accounting.get_epsilon_gaussian(60.0 / times**0.5, delta)
  assert exact <= cost.epsilon(delta, ADD_REMOVE) <= exact * 1.02 + 1e-4
  exact = dp_accounting.get_epsilon_gaussian(60.0 / (2 * times) ** 0.5, delta)
  assert exact <= cost.epsilon(delta, REPLACE_ONE) <= exact * 1.02 + 1e-4


def test_composition_agrees_with_brute_force():
  # Two answers with different noise: the product distributions, summed.
  a, b = references.noise(4.0, 0.5), references.noise(7.0, 0.9)
  cost = composition.Cost((composition.Release(4.0, 0.5),)) + composition.Cost(
    (composition.Release(7.0, 0.9),)
  )
  epsilon = cost.epsilon(DELTA, ADD_REMOVE)

  def delta(at):
    grow = np.exp(at)
    p0, m = np.outer(a[0], b[0]), np.outer(a[1], b[1])
    remove = np.maximum(m - grow * p0, 0).sum()
    return max(remove, np.maximum(p0 - grow * m, 0).sum())

  assert delta(epsilon) <= DELTA < delta(epsilon - 2e-4)


def _composed_delta(sigma, times, epsilon):
  """The delta of answers without a subsample, whose sum says all there is."""
  p0, _ = references.noise(sigma, 1.0)
  total = np.ones(1)
  for _ in range(times):
    total = np.convolve(total, p0)
  absent = np.append(total, np.zeros(times))
  present = np.append(np.zeros(times), total)
  return np.maximum(present - np.exp(epsilon) * absent, 0).sum()


@pytest.mark.parametrize(("sigma", "times"), [(0.7, 65), (6.0, 120)])
def test_many_answers_agree_with_brute_force(sigma, times):
  cost = composition.Cost((composition.Release(sigma, 1.0, times=times),))
  epsilon = cost.epsilon(DELTA, ADD_REMOVE)
  assert _composed_delta(sigma, times, epsilon) <= DELTA
  assert _composed_delta(sigma, times, 0.998 * epsilon) > DELTA


@pytest.mark.parametrize(
  "releases",
  [
    [(12.0, 0.5, 1, 300), (6.0, 0.5, 2, 60)],
    [(0.8, 0.001, 1, 70), (20.0, 0.9, 1, 5)],
  ],
)
def test_many_mixed_answers_cost_no_less_than_the_truth(releases):
  # The truth lies above what dp_accounting finds if it rounds losses down.
  releases = [composition.Release(*release) for release in releases]
  found = []
  for sign in (1, -1):
    total = None
    for release in releases:
      p0, m = references.noise(release.sigma, release.gamma, release.bins)
      # The difference of two rounded normals is as wide as two of them.
      if release.bins == 2:
        p0, m = references.votes(release.sigma, release.gamma)
      lower, upper = (
        dict(enumerate(np.log(masses).tolist())) for masses in (p0, m)[::sign]
      )
      once = dp_accounting.pld.privacy_loss_distribution
      once = once.from_two_probability_mass_functions(
        lower,
        upper,
        pessimistic_estimate=False,
        value_discretization_interval=1e-4,
      ).self_compose(release.times)
      total = once if total is None else total.compose(once)
    found.append(total.get_epsilon_for_delta(DELTA))
  epsilon = composition.Cost(tuple(releases)).epsilon(DELTA, ADD_REMOVE)
  assert max(found) <= epsilon <= 1.02 * max(found)


@pytest.mark.parametrize(
  ("few", "many", "times"),
  [
    (composition.Release(0.3, 0.001), 2000.0, 100_000),
    (composition.Release(0.4, 0.01), 9000.0, 1_000_000),
    (composition.Release(0.9, 0.001), 16000.0, 1_000_000),
    (composition.Release(0.3, 0.0003), 100.0, 40),
  ],
)
def test_one_large_loss_among_many_small_ones_costs_little_more(
  few, many, times
):
  # So many answers with so much noise, and all samples, are one Gaussian.
  scale = many / times**0.5
  cost = composition.Cost((few, composition.Release(many, 1.0, times=times)))
  epsilon = cost.epsilon(DELTA, ADD_REMOVE)
  p0, m = (np.log(p[p > 0]) for p in references.noise(few.sigma, few.gamma))
  size = min(len(p0), len(m))
  p0, m = p0[:size], m[:size]

  def delta(at):
    found = []
    for lower, upper in ((p0, m), (m, p0)):
      left = at - (upper - lower)
      half = 1 / (2 * scale)
      within = stats.norm.sf(left * scale - half) - np.exp(
        left + stats.norm.logsf(left * scale + half)
      )
      found.append(np.exp(upper) @ within)
    return max(found)

  assert delta(epsilon) <= DELTA < delta(0.99 * epsilon)


def test_a_million_answers_take_little_memory():
  cost = composition.Cost((composition.Release(53.0, 0.5, times=1_000_000),))
  tracemalloc.start()
  try:
    cost.epsilon(DELTA, ADD_REMOVE)
    assert tracemalloc.get_traced_memory()[1] < 200e6
  finally:
    tracemalloc.stop()


def test_composition_costs_less_than_the_sum_and_ignores_order():
  one = composition.Cost((composition.Release(10.0, 0.8),))
  two = composition.Cost((composition.Release(20.0, 0.5),))
  both = (one + two).epsilon(DELTA, REPLACE_ONE)
  assert both == (two + one).epsilon(DELTA, REPLACE_ONE)
  alone = [cost.epsilon(DELTA, REPLACE_ONE) for cost in (one, two)]
  assert max(alone) < both < sum(alone)
  assert composition.Cost().epsilon(DELTA, ADD_REMOVE) == 0.0


@pytest.mark.parametrize(("sigma", "gamma"), [(0.6, 0.5), (3.0, 0.15)])
def test_votes_of_neighbours_agree_with_brute_force(sigma, gamma):
  # Private-kNN: the sample's vote comes and a neighbour's goes.
  cost = composition.Cost((composition.Release(sigma, gamma, bins=2),))
  epsilon = cost.epsilon(DELTA, ADD_REMOVE)
  up, _ = references.noise(sigma, 0.0)
  p0 = np.outer(up, up)
  moved = np.outer(np.roll(up, 1), np.roll(up, -1))
  m = (1 - gamma) * p0 + gamma * moved

  def delta(at):
    grow = np.exp(at)
    remove = np.maximum(m - grow * p0, 0).sum()
    return max(remove, np.maximum(p0 - grow * m, 0).sum())

  assert delta(epsilon) <= DELTA < delta(epsilon - 2e-4)


def _signed_delta(scale, gamma, votes, epsilon):
  """The delta of sums that one sample moves by `votes`, over all their values.

  Args:
    votes: What the sample adds to each sum.
  """
  reach = int(10 * scale) + max(map(abs, votes))
  x = np.arange(-reach, reach + 1)
  one = np.exp(-(x**2) / (2 * scale**2))
  one /= one.sum()
  p0, p1 = np.ones(1), np.ones(1)
  for v in votes:
    moved = (
      np.exp(-((x - v) ** 2) / (2 * scale**2))
      / np.exp(-(np.arange(-3 * reach, 3 * reach) ** 2) / (2 * scale**2)).sum()
    )
    p0, p1 = np.outer(p0, one).ravel(), np.outer(p1, moved).ravel()
  m = (1 - gamma) * p0 + gamma * p1
  grow = math.exp(epsilon)
  remove = np.maximum(m - grow * p0, 0).sum()
  return max(remove, np.maximum(p0 - grow * m, 0).sum())


@pytest.mark.parametrize(
  ("sigma", "gamma", "votes", "weight"),
  [
    (0.8, 0.6, (1, -1), 0),
    (5.0, 0.9, (-1, -1), 0),
    (1.3, 0.3, (1, -1, 1), 0),
    (0.5, 0.8, (-1,), 3),
    (0.7, 0.5, (1, -1), 2),
    (0.6, 1.0, (1, 1, -1), 1),
  ],
)
def test_signed_votes_agree_with_brute_force(sigma, gamma, votes, weight):
  release = composition.Release.of(sigma, gamma, len(votes), weight)
  epsilon = composition.Cost((release,)).epsilon(DELTA, ADD_REMOVE)
  votes = (*votes, weight) if weight else votes
  assert release.sigma == pytest.approx(sigma * np.linalg.norm(votes))
  assert _signed_delta(release.sigma, gamma, votes, epsilon) <= DELTA
  assert _signed_delta(release.sigma, gamma, votes, epsilon - 2e-4) > DELTA


def test_fewer_votes_than_allowed_cost_no_more():
  release = composition.Release.of(0.9, 0.7, 3)
  epsilon = composition.Cost((release,)).epsilon(DELTA, ADD_REMOVE)
  for votes in ((1, 0, -1), (0, 0, 1), (0, 0, 0)):
    assert _signed_delta(release.sigma, 0.7, votes, epsilon) <= DELTA


def test_many_votes_cost_as_a_gaussian_of_their_length():
  # On so fine a lattice the sums are as good as continuous.
  release = composition.Release.of(5.0, 1.0, 200)
  exact = dp_accounting.get_epsilon_gaussian(5.0, DELTA)
  epsilon = composition.Cost((release,)).epsilon(DELTA, ADD_REMOVE)
  assert exact <= epsilon <= exact + 2e-4


def test_signed_votes_compose_with_counts():
  signs = composition.Cost((composition.Release.of(4.0, 0.8, 17),))
  counts = composition.Cost((composition.Release(4.0, 0.8),))
  both, twice = (
    c.epsilon(DELTA, ADD_REMOVE) for c in (signs + counts, signs + signs)
  )
  assert both == pytest.approx(twice, rel=0.02)
  assert both > signs.epsilon(DELTA, ADD_REMOVE)


def test_signed_votes_claim_nothing_for_a_replacement():
  cost = composition.Cost((composition.Release.of(25.0, 0.15, 3),))
  with pytest.raises(errors.EcosError, match="add_remove"):
    cost.epsilon(DELTA, REPLACE_ONE)


def test_votes_of_neighbours_claim_nothing_for_a_replacement():
  cost = composition.Cost((composition.Release(25.0, 0.15, bins=2),))
  with pytest.raises(errors.EcosError, match="add_remove"):
    cost.epsilon(DELTA, REPLACE_ONE)


def test_the_noise_is_what_its_definition_says():
  for sigma in (0.3, 1.7):
    x, log_mass = composition.log_noise(sigma)
    ratio = np.exp(log_mass[x == 2] - log_mass[x == 1])
    assert ratio == pytest.approx(np.exp(-3 / (2 * sigma**2)))
    assert np.exp(log_mass).sum() == pytest.approx(1, abs=1e-12)
    x2, log_mass2 = composition.log_noise(sigma, bins=2)
    full = np.convolve(np.exp(log_mass), np.exp(log_mass))
    center = len(full) // 2
    for k in range(-4, 5):
      assert np.exp(log_mass2[x2 == k]) == pytest.approx(full[center + k])


@pytest.mark.parametrize(("bins", "weight"), [(2, 0), (3, 0), (2, 3), (9, 1)])
def test_the_noise_of_several_votes_is_a_convolution(bins, weight):
  sigma = 0.3 * (bins + weight**2) ** 0.5
  one = np.exp(composition.log_noise(sigma)[1])
  full = one
  for _ in range(bins - 1):
    full = np.convolve(full, one)
  if weight:
    apart = np.zeros(weight * (len(one) - 1) + 1)
    apart[::weight] = one
    full = np.convolve(full, apart)
  x, log_mass = composition.log_noise(sigma, bins, weight)
  middle = len(full) // 2
  sure = (full > 1e-13 * full.max()) & (
    np.abs(np.arange(len(full)) - middle) <= x[-1]
  )
  places = np.flatnonzero(sure) - middle
  np.testing.assert_allclose(
    np.exp(log_mass[places + x[-1]]), full[sure], rtol=1e-9
  )
  # By its definition the shift changes the odds as a Gaussian's does, also in
  # tails that no sum of products reaches.
  shift = bins + weight**2
  ratio = log_mass[:-shift] - log_mass[shift:]
  exact = (2 * x[shift:] - shift) / (2 * sigma**2)
  np.testing.assert_allclose(ratio, exact, rtol=1e-9, atol=1e-9)

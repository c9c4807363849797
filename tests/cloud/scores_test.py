import math

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from ecos_jax import config
from ecos_jax import errors
from ecos_jax.cloud import scores as scores_lib

Estimate, Filter = config.Estimate, config.Filter


def options(**fields):
  return config.Sampling(**fields)


def test_a_threshold_keeps_what_is_positive_and_reaches_it():
  scores = np.array([-4, 0, 9, 10, 11, 300])
  for sigma, threshold, expected in (
    (10.0, 1.0, [0, 0, 0, 10, 11, 300]),
    (10.0, 0.0, [0, 0, 9, 10, 11, 300]),
    (0.0, 5.0, [0, 0, 9, 10, 11, 300]),
  ):
    got = scores_lib.votes(
      scores,
      np.full(6, 1000),
      sigma,
      options(
        filter=Filter.THRESHOLD, threshold=threshold, estimate=Estimate.SCORE
      ),
    )
    np.testing.assert_array_equal(got, expected)


def test_to_keep_nothing_is_refused():
  given = options(filter=Filter.THRESHOLD, threshold=2.0)
  with pytest.raises(errors.EcosError, match=r"threshold`=2 .*highest is 9"):
    scores_lib.votes(np.array([-4, 9]), np.array([5, 50]), 10.0, given)


def mixture(scores, sizes, sigma, grid, iterations):
  """The maximum likelihood mixture by EM, one number at a time."""
  prior = [1 / len(grid)] * len(grid)
  for step in range(iterations + 1):
    total, means = [0.0] * len(grid), []
    for score, size in zip(scores, sizes, strict=True):
      joint = [
        p * math.exp(-((score - size * q) ** 2) / (2 * sigma**2))
        for p, q in zip(prior, grid, strict=True)
      ]
      mass = [j / math.fsum(joint) for j in joint]
      means.append(
        size * math.fsum(m * q for m, q in zip(mass, grid, strict=True))
      )
      total = [t + m for t, m in zip(total, mass, strict=True)]
    if step < iterations:
      prior = [t / len(scores) for t in total]
  return means


def test_posterior_mean_equals_brute_force(monkeypatch):
  monkeypatch.setattr(scores_lib, "_GRID", 12)
  monkeypatch.setattr(scores_lib, "_ITERATIONS", 9)
  random = np.random.default_rng(1)
  sizes = random.integers(20, 60, 15)
  scores = random.integers(-9, 40, 15)
  grid = scores_lib._grid(scores, sizes, 6.0)
  np.testing.assert_allclose(
    scores_lib.posterior_mean(scores, sizes, 6.0),
    mixture(scores.tolist(), sizes.tolist(), 6.0, grid.tolist(), 9),
    rtol=1e-9,
  )


def test_posterior_mean_of_what_is_known():
  # Half of the clusters hold nothing, half 40 votes: given that, the best
  # estimate is the posterior mean of two points.
  random = np.random.default_rng(2)
  votes = np.repeat([0.0, 40.0], 400)
  sizes = np.full(800, 100)
  scores = np.rint(votes + random.normal(0, 10, 800)).astype(np.int64)
  got = scores_lib.posterior_mean(scores, sizes, 10.0)
  oracle = 40 / (1 + np.exp((40**2 - 2 * 40 * scores) / 200))

  def error(estimate):
    return np.sqrt(np.mean((estimate - votes) ** 2))

  assert np.sqrt(np.mean((got - oracle) ** 2)) < 2.0
  assert error(got) < 1.1 * error(oracle)
  assert error(got) < 0.8 * error(np.maximum(scores, 0))


def test_posterior_mean_fits_the_prior_on_a_part(monkeypatch):
  random = np.random.default_rng(3)
  sizes = random.integers(0, 2000, 1001)
  scores = np.rint(
    sizes * random.choice([0.0, 0.3], 1001) + random.normal(0, 10, 1001)
  ).astype(np.int64)
  whole = scores_lib.posterior_mean(scores, sizes, 10.0)
  monkeypatch.setattr(scores_lib, "_FITTED", 300)
  part = scores_lib.posterior_mean(scores, sizes, 10.0)
  assert np.sqrt(np.mean((whole - part) ** 2)) < 5
  # One that the fit did not see, and unlike all others.
  scores[1], sizes[1] = 10**6, 2000
  got = scores_lib.posterior_mean(scores, sizes, 10.0)
  assert np.isfinite(got).all()
  assert abs(got[1] / 10**6 - 1) < 0.05


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
  strategies.lists(
    strategies.tuples(
      strategies.integers(-50, 10**6), strategies.integers(0, 10**7)
    ),
    min_size=1,
    max_size=20,
  ),
  strategies.sampled_from([0.25, 10.0, 500.0]),
)
def test_posterior_mean_is_finite_and_follows_the_score(rows, sigma):
  scores, sizes = map(np.array, zip(*rows, strict=True))
  got = scores_lib.posterior_mean(scores, sizes, sigma)
  assert np.isfinite(got).all() and np.all(got >= 0)
  # Of two clusters of one size the one of the higher score has more.
  for a in range(len(rows)):
    for b in range(len(rows)):
      if sizes[a] == sizes[b] and scores[a] > scores[b]:
        assert got[a] >= got[b] * (1 - 1e-9)


def test_votes_are_scores_or_estimates_of_what_is_kept():
  scores, sizes = np.array([30, 8, 20, -3]), np.array([100, 9, 25, 7])
  given = options(filter=Filter.THRESHOLD, estimate=Estimate.SCORE)
  got = scores_lib.votes(scores, sizes, 10.0, given)
  np.testing.assert_array_equal(got, [30, 0, 20, 0])
  given = options(filter=Filter.NONE, estimate=Estimate.SCORE)
  got = scores_lib.votes(scores, sizes, 10.0, given)
  np.testing.assert_array_equal(got, [30, 8, 20, 0])
  given = options(filter=Filter.THRESHOLD, estimate=Estimate.POSTERIOR)
  got = scores_lib.votes(scores, sizes, 10.0, given)
  mean = scores_lib.posterior_mean(scores, sizes, 10.0)
  np.testing.assert_array_equal(got, [mean[0], 0, mean[2], 0])


def test_covered_are_the_densest_clusters_by_hand():
  votes = np.array([9.0, 60, 1, 30, 0])
  sizes = np.array([100, 10, 1000, 10, 0])
  for rows, expected in (
    (0, [1, 1, 0, 1, 0]),
    (120, [1, 1, 0, 1, 0]),
    (121, [1, 1, 1, 1, 0]),
    (1120, [1, 1, 1, 1, 0]),
  ):
    found = scores_lib.covered(votes, sizes, rows)
    np.testing.assert_array_equal(found, np.array(expected, bool))


def test_density_of_an_empty_cluster_is_finite():
  got = scores_lib.density(np.array([40.0, 30.0]), np.array([0, 60]))
  np.testing.assert_array_equal(got, [40, 0.5])


def test_the_papers_method_has_the_papers_settings():
  given = options(method=config.Method.ECOS_PAPER, budget=7, density_power=3.0)
  got = given.resolved()
  assert got.budget == 7
  assert {name: getattr(got, name) for name in config.PAPER} == config.PAPER
  assert options().resolved() == options()

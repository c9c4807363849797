"""What an answer is worth, against simulations of answers and clients."""

import numpy as np
import pytest

from ecos_jax.cloud import worth

SIZES = np.array([100, 400, 250, 50, 200])
SHARES = SIZES / 1000


def of(counts, sigma, voters=500):
  return worth.Means.of_counts(counts, SIZES, sigma, voters)


def test_chance_moves_the_means_as_far_as_is_said():
  random = np.random.default_rng(0)
  counts = random.multinomial(500, SHARES, 20_000)
  scores = counts + random.normal(0, 4, counts.shape)
  spread = (scores / 500).std(axis=0)
  np.testing.assert_allclose(of(scores[0], 4.0).chance, spread, rtol=0.03)


@pytest.mark.parametrize("sigma", [0.5, 20.0])
def test_a_client_like_the_pool_is_taken_for_noise(sigma):
  random = np.random.default_rng(1)
  found = []
  for _ in range(500):
    scores = random.multinomial(500, SHARES) + random.normal(0, sigma, 5)
    found.append(worth.estimate(of(scores, sigma), SHARES))
  assert abs(np.mean([each.deviations for each in found])) < 0.2
  assert np.mean([each.may_be_noise for each in found]) > 0.95
  # A random proxy is never said to be nearer than a random one by much.
  assert np.mean([each.nearer for each in found]) == 0
  assert not any(each.tells_of_no_gain for each in found if each.may_be_noise)


def test_signal_and_distance_without_noise():
  client = np.array([0.4, 0.1, 0.1, 0.3, 0.1])
  found = worth.estimate(of(1e6 * client, 1.0, 1e6), client)
  assert found.signal > 0.999 and found.nearer > 0.99
  assert not found.may_be_noise
  # Half of the way is a quarter of the squared distance.
  found = worth.estimate(of(1e6 * client, 1.0, 1e6), (client + SHARES) / 2)
  assert found.nearer == pytest.approx(0.75, abs=0.005)
  assert found.nearer_at_most == pytest.approx(0.75, abs=0.005)
  assert not found.tells_of_no_gain
  # A proxy of the whole pool, and one that is farther away than it.
  for proxy in (SHARES, 2 * SHARES - client):
    found = worth.estimate(of(1e6 * client, 1.0, 1e6), proxy)
    assert found.nearer == found.nearer_at_most == 0
    assert found.tells_of_no_gain and not found.may_be_noise


@pytest.mark.parametrize("followed", [0.0, 0.5, 1.0])
def test_the_most_is_no_less_than_the_truth_in_expectation(followed):
  random = np.random.default_rng(3)
  client = np.array([0.3, 0.2, 0.15, 0.15, 0.2])
  most, true = [], []
  for _ in range(4000):
    scores = random.multinomial(500, client) + random.normal(0, 4, 5)
    means = of(scores, 4.0)
    proxy = (client + SHARES) / 2 + followed * (means.values - client)
    found = worth.estimate(means, proxy)
    most.append(found.nearer_at_most)
    gaps = (np.stack([proxy, SHARES]) - client) / means.chance
    left, pool = (gaps**2).sum(axis=1)
    true.append(1 - left / pool)
  gap = np.mean(most) - np.mean(true)
  assert abs(gap) < 0.01 if not followed else gap > 0


def test_it_claims_no_more_than_the_truth_where_the_proxy_follows_the_noise():
  random = np.random.default_rng(2)
  client = np.array([0.2, 0.3, 0.25, 0.1, 0.15])
  claimed, true = [], []
  for _ in range(400):
    scores = 500 * client + random.normal(0, 2, 5)
    means = of(scores, 2.0)
    # The worst proxy: what was answered, noise and all.
    claimed.append(worth.estimate(means, means.values).nearer)
    gaps = (np.stack([means.values, SHARES]) - client) / means.chance
    proxy, pool = (gaps**2).sum(axis=1)
    true.append(1 - proxy / pool)
  assert np.mean(claimed) <= np.mean(true)
  assert np.mean(claimed) > 0.1


def test_means_are_put_together():
  counts = of(np.array([100.0, 90, 80, 70, 60]), 2.0)
  both = counts.and_those(counts)
  assert both.squared_distance(np.tile(SHARES, 2)) == pytest.approx(
    2 * counts.squared_distance(SHARES)
  )

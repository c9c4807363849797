import jax
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.cloud import baselines
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import start as start_lib
from tests.cloud import banks

KEY = jax.random.key(0)


def pool(n=500, d=3, seed=0):
  random = np.random.default_rng(seed)
  return random.normal(size=(n, d)).astype(np.float32)


def greedy(features, gaps, first, budget):
  chosen = [first]
  while len(chosen) < budget:
    last = np.sum((features - features[chosen[-1]]) ** 2, axis=1)
    gaps = np.minimum(gaps, last)
    gaps[chosen] = -1
    chosen.append(int(np.argmax(gaps)))
  return sorted(chosen)


def test_random_is_a_uniform_sample():
  draws = [baselines.random(40, 10, jax.random.key(i)) for i in range(400)]
  assert all(len(set(draw.tolist())) == 10 for draw in draws)
  assert all(np.all(np.diff(draw) > 0) for draw in draws)
  counts = np.bincount(np.concatenate(draws), minlength=40)
  assert np.all(np.abs(counts - 100) < 50)
  np.testing.assert_array_equal(
    draws[3], baselines.random(40, 10, jax.random.key(3))
  )
  np.testing.assert_array_equal(baselines.random(4, 4, KEY), np.arange(4))


def test_kcenter_equals_a_loop():
  features = pool()
  got = baselines.kcenter(banks.Rows(features), 60, KEY)
  starts = [
    greedy(features, np.full(500, np.inf), first, 60) for first in got[:60]
  ]
  # It began somewhere: one of its own samples leads to all of it.
  assert got.tolist() in starts
  assert got.dtype == np.int64


def test_kcenter_is_the_same_at_a_mean_of_10_000_spreads():
  # Multiples of 1/256: adding the offset is exact.
  features = np.round(pool() * 256) / 256
  got = baselines.kcenter(banks.Rows(features), 60, KEY)
  far = baselines.kcenter(banks.Rows(features + np.float32(2e4)), 60, KEY)
  np.testing.assert_array_equal(far, got)


def test_kcenter_covers_better_than_random():
  features = pool(3000, 4)
  bank = banks.Rows(features)

  def radius(rows):
    gaps = np.sum((features[:, None] - features[rows]) ** 2, axis=2)
    return gaps.min(axis=1).max()

  chosen = baselines.kcenter(bank, 50, KEY)
  assert radius(chosen) < 0.6 * radius(baselines.random(3000, 50, KEY))


def test_kcenter_of_a_large_pool_uses_a_sample(monkeypatch):
  monkeypatch.setattr(baselines, "_MIN_CANDIDATES", 100)
  features = pool(3000, 4)
  got = baselines.kcenter(banks.Rows(features), 20, KEY)
  assert len(set(got.tolist())) == 20
  sample = start_lib.subsample(3000, 160, jax.random.split(KEY)[0])
  assert set(got.tolist()) <= set(sample.tolist())


def test_mak_equals_its_description():
  features = pool(400, 3)
  client = (0.3 * pool(60, 3, seed=1) + 1).astype(np.float32)
  got = baselines.mak(banks.Rows(features), client, 40, KEY)
  means = kmeans.fit(client, 10, KEY).centroids
  gaps = np.sum((features[:, None] - means) ** 2, axis=2).min(axis=1)
  candidates = np.sort(np.argsort(gaps)[:60])
  part = features[candidates]
  nearest = np.sum((part[:, None] - client) ** 2, axis=2).min(axis=1)
  rows = greedy(part, nearest, int(np.argmax(nearest)), 40)
  np.testing.assert_array_equal(got, candidates[rows])


def test_mak_goes_where_the_client_is():
  features = np.concatenate([pool(300) + 10, pool(300) - 10])
  got = baselines.mak(banks.Rows(features), pool(5, seed=2) - 10, 100, KEY)
  assert got.min() >= 300


@pytest.mark.parametrize("budget", [0, 501])
def test_refuses_a_wrong_budget(budget):
  bank = banks.Rows(pool())
  for choose in (
    lambda: baselines.random(500, budget, KEY),
    lambda: baselines.kcenter(bank, budget, KEY),
    lambda: baselines.mak(bank, pool(9), budget, KEY),
  ):
    with pytest.raises(errors.EcosError, match=r"budget.* 500"):
      choose()


def test_the_whole_pool():
  bank = banks.Rows(pool(20))
  np.testing.assert_array_equal(baselines.kcenter(bank, 20, KEY), np.arange(20))
  np.testing.assert_array_equal(
    baselines.mak(bank, pool(4), 20, KEY), np.arange(20)
  )

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax import config
from ecos_jax.cloud import codebook
from ecos_jax.cloud import density as density_lib
from ecos_jax.cloud import directions
from ecos_jax.cloud import sampling
from ecos_jax.cloud import worth
from tests.cloud import banks

KEY = jax.random.key(0)
WITHIN = list(config.Within)


def in_order(
  bank,
  assignment,
  centroids,
  quotas,
  within,
  *,
  density=None,
  key=KEY,
  **shares,
):
  """Returns the choice of each cluster; all are candidates without shares."""
  options = config.Sampling(within=within, likely=1.0, central=1.0)
  if density is None:
    density = np.ones(len(quotas))
  # Rows of no cluster have the assignment -1.
  sizes = np.bincount(assignment + 1, minlength=len(quotas) + 1)[1:]
  return sampling.decompress(
    bank,
    codebook.Codebook(centroids, sizes, assignment),
    density,
    quotas,
    dataclasses.replace(options, **shares),
    key,
  )


def decompress(*arguments, **options):
  """Returns the choice of all clusters, sorted in each."""
  parts = in_order(*arguments, **options)
  return np.concatenate([np.sort(rows) for rows in parts])


def clusters(sizes, d=5, seed=0):
  """Returns a bank of integer features, its assignment, the centroids."""
  random = np.random.default_rng(seed)
  assignment = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
  random.shuffle(assignment)
  features = random.integers(-50, 50, (len(assignment), d)).astype(np.float32)
  centroids = random.integers(-9, 9, (len(sizes), d)).astype(np.float32)
  return banks.Rows(features), assignment, centroids


def greedy(features, quota, first, weights=None):
  """k-center greedy, one sample and one distance at a time."""
  weights = np.ones(len(features)) if weights is None else weights
  chosen = [first]
  while len(chosen) < quota:
    best, farthest = None, -1.0
    for i in range(len(features)):
      if i not in chosen:
        gap = min(np.sum((features[i] - features[j]) ** 2) for j in chosen)
        gap *= weights[i]
        if gap > farthest:
          best, farthest = i, gap
    chosen.append(best)
  return chosen


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("d", [1, 8])
def test_farthest_first_equals_a_loop(d, weighted):
  random = np.random.default_rng(d)
  features = random.integers(-9, 9, (3, 40, d)).astype(np.float32)
  start = np.array([0, 17, 39], np.int32)
  nearest = np.full((3, 40), np.inf, np.float32)
  weights = None
  if weighted:
    # Powers of two: products of them are exact.
    weights = np.exp2(random.integers(-5, 1, (3, 40))).astype(np.float32)
  order = sampling.farthest_first(
    features, nearest, start, jnp.int32(15), weights
  )
  for i in range(3):
    each = None if weights is None else weights[i]
    expected = greedy(features[i], 15, int(start[i]), each)
    np.testing.assert_array_equal(np.argsort(order[i])[:15], expected)


def test_farthest_first_leaves_padding_and_uses_up_small_sets():
  features = np.arange(8, dtype=np.float32).reshape(2, 4, 1)
  nearest = np.array([[np.inf] * 4, [np.inf] * 2 + [-np.inf] * 2], np.float32)
  start = np.zeros(2, np.int32)
  order = sampling.farthest_first(features, nearest, start, jnp.int32(4))
  np.testing.assert_array_equal(order[0], [0, 2, 3, 1])
  np.testing.assert_array_equal(order[1, :2], [0, 1])
  assert np.all(order[1, 2:] >= 4)


def test_farthest_first_after_earlier_choices():
  features = np.array([[[0.0], [1], [5], [9]]], np.float32)
  # As if a sample at 9 had been chosen before.
  nearest = (features[:, :, 0] - 9) ** 2
  order = sampling.farthest_first(
    features, nearest, np.zeros(1, np.int32), jnp.int32(2)
  )
  np.testing.assert_array_equal(order[0, :3] < 2, [True, False, True])


SIZES = [0, 1, 3, 64, 65, 300, 120, 0, 130]
QUOTAS = np.array([0, 1, 2, 64, 30, 7, 0, 0, 12])


def test_kcenter_where_the_density_is_known_at_samples():
  bank, assignment, centroids = clusters([40, 70])
  features = bank.take(np.arange(110))
  axes = np.eye(5, dtype=np.float32)
  directed = directions.Directions(axes, np.zeros(5, np.float32))
  # Roots of densities are powers of two: products of them are exact.
  tilt = np.array([3, -1, 2, 1, -2]) * np.log(2) * 2
  density = density_lib.Density(
    directed, 5, tilt, 0.0, worth.Means(*np.zeros((3, 5)))
  )
  logs = np.sign(features) @ tilt
  got = in_order(
    bank,
    assignment,
    centroids,
    np.array([6, 9]),
    config.Within.KCENTER,
    density=density,
  )
  for r, chosen in enumerate(got):
    members = np.flatnonzero(assignment == r)
    weights = np.exp2(np.round(logs[members] / np.log(2) / 2))
    # The densest; of several, the one nearest to the centroid.
    gaps = np.sum((features[members] - centroids[r]) ** 2, axis=1)
    first = int(np.lexsort((gaps, -weights))[0])
    expected = greedy(features[members], len(chosen), first, weights)
    np.testing.assert_array_equal(chosen, members[expected])


def test_kcenter_equals_a_loop():
  bank, assignment, centroids = clusters(SIZES)
  got = in_order(bank, assignment, centroids, QUOTAS, config.Within.KCENTER)
  for r, quota in enumerate(QUOTAS):
    members = np.flatnonzero(assignment == r)
    if quota == len(members):
      assert set(got[r]) == set(members)
    elif quota:
      features = bank.features[members]
      gaps = np.sum((features - centroids[r]) ** 2, axis=1)
      order = greedy(features, quota, int(np.argmin(gaps)))
      np.testing.assert_array_equal(got[r], members[order])


def test_nearest_equals_a_sort():
  bank, assignment, centroids = clusters(SIZES)
  got = in_order(bank, assignment, centroids, QUOTAS, config.Within.NEAREST)
  for r, quota in enumerate(QUOTAS):
    members = np.flatnonzero(assignment == r)
    if quota == len(members):
      assert set(got[r]) == set(members)
      continue
    gaps = np.sum((bank.features[members] - centroids[r]) ** 2, axis=1)
    nearest = members[np.argsort(gaps, kind="stable")[:quota]]
    np.testing.assert_array_equal(got[r], nearest)


@pytest.mark.parametrize("within", WITHIN)
def test_decompress_keeps_the_quotas_in_order(within):
  bank, assignment, centroids = clusters(SIZES)
  got = decompress(bank, assignment, centroids, QUOTAS, within)
  assert got.dtype == np.int64
  labels = assignment[got]
  np.testing.assert_array_equal(np.bincount(labels, minlength=9), QUOTAS)
  keys = list(zip(labels.tolist(), got.tolist(), strict=True))
  assert keys == sorted(set(keys))


@pytest.mark.parametrize("within", WITHIN)
def test_decompress_is_independent_of_block_sizes(within, monkeypatch):
  monkeypatch.setattr(sampling, "_MIN_CANDIDATES", 16)
  bank, assignment, centroids = clusters(SIZES)
  arguments = (bank, assignment, centroids, np.minimum(QUOTAS, 9), within)
  expected = decompress(*arguments, likely=0.8, central=0.7)
  monkeypatch.setattr(sampling, "_SCAN_ROWS", 7)
  monkeypatch.setattr(sampling, "_CPU_GROUP_ROWS", 64)
  np.testing.assert_array_equal(
    decompress(*arguments, likely=0.8, central=0.7), expected
  )


def test_random_is_uniform_and_follows_the_key():
  bank, assignment, centroids = clusters([50, 30])
  quotas = np.array([10, 15])
  draws = [
    decompress(
      bank,
      assignment,
      centroids,
      quotas,
      config.Within.RANDOM,
      key=jax.random.key(seed),
    )
    for seed in range(300)
  ]
  assert len({draw.tobytes() for draw in draws}) == 300
  counts = np.bincount(np.concatenate(draws), minlength=80)
  expected = np.where(assignment == 0, 60, 150)
  assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_large_clusters_are_represented_by_random_candidates(monkeypatch):
  monkeypatch.setattr(sampling, "_MIN_CANDIDATES", 128)
  _, assignment, _ = clusters([20_000, 100, 3000])
  sizes = np.bincount(assignment)
  candidates = sampling._candidates(
    assignment, sizes, np.array([40, 5, 0]), KEY
  )
  # 8 x 40, up to a power of two; everything; nothing.
  assert [len(rows) for rows in candidates] == [512, 100, 0]
  for r, rows in enumerate(candidates):
    assert len(set(rows.tolist())) == len(rows)
    assert np.all(assignment[rows] == r)
  middle = np.mean(candidates[0]) / len(assignment)
  assert 0.44 < middle < 0.56


def test_kcenter_covers_better_than_random():
  random = np.random.default_rng(0)
  features = random.normal(size=(2000, 4)).astype(np.float32)
  bank = banks.Rows(features)
  assignment = np.zeros(2000, np.int32)

  def radius(within):
    rows = decompress(
      bank, assignment, np.zeros((1, 4)), np.array([50]), within
    )
    gaps = np.sum((features[:, None] - features[rows]) ** 2, axis=2)
    return gaps.min(axis=1).max()

  assert radius(config.Within.KCENTER) < 0.6 * radius(config.Within.RANDOM)


@pytest.mark.parametrize("within", WITHIN)
def test_duplicates_are_chosen_last(within):
  features = np.repeat(np.eye(5, dtype=np.float32), [9, 9, 9, 9, 9], axis=0)
  got = decompress(
    banks.Rows(features),
    np.zeros(45, np.int32),
    np.zeros((1, 5)),
    np.array([5]),
    within,
  )
  np.testing.assert_array_equal(got // 9, np.arange(5))


@pytest.mark.parametrize("within", WITHIN)
def test_copies_fill_what_nothing_else_does(within):
  features = np.repeat(np.eye(3, dtype=np.float32), [4, 1, 2], axis=0)
  features[1, 1] = -0.0
  for quota in range(1, 8):
    got = decompress(
      banks.Rows(features),
      np.zeros(7, np.int32),
      np.zeros((1, 3)),
      np.array([quota]),
      within,
      central=0.5,
    )
    assert len(set(got.tolist())) == quota
    kinds = np.argmax(features[got], axis=1)
    # Half of the three that differ is two of them.
    assert len(set(kinds.tolist())) >= min(quota, 2 + (quota > 2))


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("central", [0.01, 0.3, 0.9])
def test_central_leaves_out_what_is_far(within, central):
  bank, assignment, centroids = clusters(SIZES)
  got = decompress(bank, assignment, centroids, QUOTAS, within, central=central)
  np.testing.assert_array_equal(
    np.bincount(assignment[got], minlength=9), QUOTAS
  )
  for r, quota in enumerate(QUOTAS):
    members = np.flatnonzero(assignment == r)
    gaps = np.sum((bank.features[members] - centroids[r]) ** 2, axis=1)
    limit = max(quota, int(np.ceil(central * len(members))))
    central_members = members[np.argsort(gaps, kind="stable")[:limit]]
    assert set(got[assignment[got] == r]) <= set(central_members)


@pytest.mark.parametrize("within", WITHIN)
def test_rows_in_no_cluster_are_never_chosen(within):
  bank, assignment, centroids = clusters([40, 60, 50])
  # The last cluster is taken away: all rows of the others can be had.
  assignment = np.where(assignment == 2, -1, assignment).astype(np.int32)
  for quotas in ([40, 60], [39, 7], [40, 0]):
    got = decompress(bank, assignment, centroids[:2], np.array(quotas), within)
    labels = assignment[got]
    np.testing.assert_array_equal(np.bincount(labels, minlength=2), quotas)
  with pytest.raises(ValueError, match="larger than its cluster"):
    decompress(bank, assignment, centroids[:2], np.array([41, 0]), within)


def test_decompress_refuses_a_quota_above_its_cluster():
  bank, assignment, centroids = clusters([5, 5])
  with pytest.raises(ValueError, match="quota"):
    decompress(bank, assignment, centroids, np.array([6, 0]), WITHIN[0])


@pytest.mark.parametrize("within", WITHIN)
def test_likely_chooses_where_the_client_is_dense(within):
  # On a line, with the client's samples to the right of everything.
  features = np.linspace(-1, 1, 400, dtype=np.float32)[:, None]
  centroids = np.array([[-0.5], [0.5]], np.float32)
  assignment = (features[:, 0] > 0).astype(np.int32)
  for likely in (0.25, 0.6):
    got = decompress(
      banks.Rows(features),
      assignment,
      centroids,
      np.array([20, 20]),
      within,
      density=np.array([0.1, 0.9]),
      likely=likely,
    )
    # The densest part of each cluster is what lies to the right in it.
    assert got[:20].min() >= 200 - 200 * likely - 1
    assert got[20:].min() >= 400 - 200 * likely - 1


@pytest.mark.parametrize("within", WITHIN)
def test_equal_densities_favour_no_part_of_the_pool(within):
  features = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
  got = decompress(
    banks.Rows(features),
    np.zeros(1000, np.int32),
    np.zeros((1, 3), np.float32),
    np.array([200]),
    within,
    likely=0.3,
  )
  assert 430 < got.mean() < 570

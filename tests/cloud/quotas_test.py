import fractions

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.cloud import quotas as quotas_lib

QUOTAS = strategies.lists(strategies.integers(0, 40), min_size=1, max_size=30)


@pytest.mark.parametrize(
  "scores, sizes, kept, budget, expected",
  [
    ([1, 1, 2], [100, 100, 100], [1, 1, 1], 8, [2, 2, 4]),
    # 10/3 each: the one left over goes to the lowest index.
    ([1, 1, 1], [9, 9, 9], [1, 1, 1], 10, [4, 3, 3]),
    # What does not fit in cluster 0 is shared 1:3.
    ([96, 1, 3], [20, 50, 50], [1, 1, 1], 60, [20, 10, 30]),
    # Cluster 2 fills up once it shares what cluster 0 leaves.
    ([80, 1, 19], [10, 99, 20], [1, 1, 1], 50, [10, 20, 20]),
    ([5, 900, 5], [9, 9, 9], [1, 0, 1], 4, [2, 0, 2]),
    ([1, 2, 3], [4, 0, 5], [1, 1, 1], 99, [4, 0, 5]),
    ([7, 7], [10**12, 10**12], [1, 1], 10**12 + 1, None),
  ],
)
def test_quotas_by_hand(scores, sizes, kept, budget, expected):
  expected = expected or [budget - budget // 2, budget // 2]
  weights = np.where(kept, scores, 0)
  got = quotas_lib.divide(weights, np.array(sizes), budget)
  np.testing.assert_array_equal(got, expected)
  assert got.dtype == np.int64


def fair_shares(scores, sizes, kept, budget):
  """Returns the exact share of each cluster, at most its size."""
  open_ = set(np.flatnonzero(kept).tolist())
  shares = {}
  while open_:
    total = sum(int(scores[r]) for r in open_)
    unit = fractions.Fraction(budget - sum(shares.values()), total)
    full = {r for r in open_ if sizes[r] <= unit * int(scores[r])}
    if not full:
      return shares | {r: unit * int(scores[r]) for r in open_}
    shares |= {r: int(sizes[r]) for r in full}
    open_ -= full
  return shares


@hypothesis.settings(deadline=None)
@hypothesis.given(
  strategies.lists(
    strategies.tuples(
      strategies.integers(1, 10**9),
      strategies.integers(0, 10**8),
      strategies.booleans(),
    ),
    min_size=1,
    max_size=30,
  ),
  strategies.integers(1, 10**9),
)
def test_quotas_properties(rows, budget):
  scores, sizes, kept = map(np.array, zip(*rows, strict=True))
  got = quotas_lib.divide(np.where(kept, scores, 0), sizes, budget)
  assert got.sum() == min(budget, sizes[kept].sum())
  assert np.all((got >= 0) & (got <= sizes))
  assert not got[~kept].any()
  # A higher score never gets less, unless its cluster is used up.
  for a in np.flatnonzero(kept):
    for b in np.flatnonzero(kept):
      if scores[a] > scores[b]:
        assert got[a] >= min(got[b], sizes[a])
  # Each gets its exact share, rounded down or up.
  for r, share in fair_shares(scores, sizes, kept, budget).items():
    assert abs(int(got[r]) - share) < 1


@hypothesis.settings(deadline=None)
@hypothesis.given(
  strategies.lists(
    strategies.tuples(
      strategies.floats(0, 1e12, allow_subnormal=False),
      strategies.integers(0, 10**8),
    ),
    min_size=1,
    max_size=30,
  ),
  strategies.integers(1, 10**9),
)
def test_quotas_of_fractional_weights(rows, budget):
  weights, sizes = map(np.array, zip(*rows, strict=True))
  got = quotas_lib.divide(weights, sizes, budget)
  counted = weights > weights.max() * 2.0**-51
  assert got.sum() >= min(budget, sizes[counted].sum())
  assert got.sum() <= min(budget, sizes[weights > 0].sum())
  assert np.all((got >= 0) & (got <= sizes))
  # A larger budget takes nothing away but a fraction that is settled anew.
  assert np.all(quotas_lib.divide(weights, sizes, budget + 1) >= got - 1)


def test_quotas_refuse_bad_input():
  with pytest.raises(errors.EcosError, match="`budget` must be > 0, got 0"):
    quotas_lib.divide(np.array([1]), np.array([5]), 0)
  for weight in (-1.0, np.nan, np.inf):
    with pytest.raises(ValueError, match="weights"):
      quotas_lib.divide(np.array([weight]), np.array([5]), 3)


def test_places_by_hand():
  for quotas, expected in (
    ([2, 2], [0, 1, 0, 1]),
    ([1, 3], [1, 1, 0, 1]),
    ([0, 2, 0], [1, 1]),
  ):
    got = quotas_lib.interleave(np.array(quotas))
    np.testing.assert_array_equal(got, expected)


@hypothesis.settings(deadline=None)
@hypothesis.given(QUOTAS)
def test_every_prefix_has_its_part_of_every_quota(quotas):
  quotas = np.array(quotas)
  budget = int(quotas.sum())
  got = quotas_lib.interleave(quotas)
  assert len(got) == budget
  for b in range(budget + 1):
    counts = np.bincount(got[:b], minlength=len(quotas))
    assert np.all(counts >= b * quotas // max(budget, 1))
    assert np.all(counts <= -(-b * quotas // max(budget, 1)))


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
  strategies.lists(strategies.floats(0.01, 100), min_size=1, max_size=30),
  strategies.integers(1, 200),
)
def test_a_prefix_is_near_the_quotas_of_its_own_budget(weights, budget):
  weights = np.array(weights)
  never_full = np.full(len(weights), budget)
  order = quotas_lib.interleave(quotas_lib.divide(weights, never_full, budget))
  for b in range(1, budget + 1):
    counts = np.bincount(order[:b], minlength=len(weights))
    gaps = np.abs(counts - quotas_lib.divide(weights, never_full, b))
    assert gaps.max() <= 2


@pytest.mark.parametrize(
  ("weights", "sizes", "budget", "before", "expected"),
  [
    # Quotas 4 each.
    ([1, 1, 1], [99, 99, 99], 12, [4, 1, 0], [0, 3, 4]),
    # Cluster 0 has 6; the others share the other 6.
    ([1, 1, 1], [99, 99, 99], 12, [6, 1, 0], [0, 2, 3]),
    # Cluster 0 has no weight; then cluster 1 has more than its quota of 3.
    ([0, 1, 2], [9, 9, 9], 10, [1, 5, 0], [0, 0, 4]),
    # Only 2 are left of cluster 0.
    ([3, 1], [2, 99], 8, [1, 0], [2, 5]),
    ([1, 1], [9, 9], 3, [2, 1], [0, 0]),
  ],
)
def test_what_was_taken_before_counts(weights, sizes, budget, before, expected):
  got = quotas_lib.top_up(
    np.array(weights, float), np.array(sizes), budget, np.array(before)
  )
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("budget", [2_000, 20_000, 200_000, 6_000_000])
def test_parts_of_a_large_budget(budget):
  sizes = np.full(6, 10**6)
  got = quotas_lib.top_up_parts(
    np.array([1.0, 3.0]),
    np.array([60.0, 30.0, 10.0] * 2),
    sizes,
    budget,
    np.zeros(6, np.int64),
  )
  assert got.sum() == budget
  assert np.all((got >= 0) & (got <= sizes))
  if budget <= 200_000:
    parts = np.array([budget // 4, budget - budget // 4])
    expected = parts[:, None] * [0.6, 0.3, 0.1]
    np.testing.assert_allclose(got, expected.ravel())

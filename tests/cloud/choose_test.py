import dataclasses
import fractions
import math

import hypothesis
from hypothesis import strategies
import jax
import numpy as np
import pytest

from ecos_jax import config
from ecos_jax import errors
from ecos_jax.client import coverage
from ecos_jax.cloud import choose
from ecos_jax.cloud import codebook
from ecos_jax.cloud import labels
from ecos_jax.cloud import question
from ecos_jax.cloud import sampling
from tests.cloud import banks

KEY = jax.random.key(0)
QUOTAS = strategies.lists(strategies.integers(0, 40), min_size=1, max_size=30)


def made_up(sizes, seed=0):
  """Returns a bank and a codebook with clusters of these sizes."""
  random = np.random.default_rng(seed)
  assignment = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
  random.shuffle(assignment)
  features = random.normal(size=(len(assignment), 4)).astype(np.float32)
  centroids = random.normal(size=(len(sizes), 4)).astype(np.float32)
  book = codebook.Codebook(centroids, np.array(sizes), assignment)
  return banks.Rows(features), book


def _answer(scores, sigma):
  return question.Combined(scores, sigma)


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
  got = choose.quotas(weights, np.array(sizes), budget)
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
  got = choose.quotas(np.where(kept, scores, 0), sizes, budget)
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
  got = choose.quotas(weights, sizes, budget)
  counted = weights > weights.max() * 2.0**-51
  assert got.sum() >= min(budget, sizes[counted].sum())
  assert got.sum() <= min(budget, sizes[weights > 0].sum())
  assert np.all((got >= 0) & (got <= sizes))
  # A larger budget takes nothing away but a fraction that is settled anew.
  assert np.all(choose.quotas(weights, sizes, budget + 1) >= got - 1)


def test_quotas_refuse_bad_input():
  with pytest.raises(errors.EcosError, match="`budget` must be > 0, got 0"):
    choose.quotas(np.array([1]), np.array([5]), 0)
  for weight in (-1.0, np.nan, np.inf):
    with pytest.raises(ValueError, match="weights"):
      choose.quotas(np.array([weight]), np.array([5]), 3)


def test_places_by_hand():
  for quotas, expected in (
    ([2, 2], [0, 1, 0, 1]),
    ([1, 3], [1, 1, 0, 1]),
    ([0, 2, 0], [1, 1]),
  ):
    got = choose.interleave(np.array(quotas))
    np.testing.assert_array_equal(got, expected)


@hypothesis.settings(deadline=None)
@hypothesis.given(QUOTAS)
def test_every_prefix_has_its_part_of_every_quota(quotas):
  quotas = np.array(quotas)
  budget = int(quotas.sum())
  got = choose.interleave(quotas)
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
  order = choose.interleave(choose.quotas(weights, never_full, budget))
  for b in range(1, budget + 1):
    counts = np.bincount(order[:b], minlength=len(weights))
    gaps = np.abs(counts - choose.quotas(weights, never_full, b))
    assert gaps.max() <= 2


def test_samples_follow_the_formula():
  sizes, scores = [100, 200, 50, 80], np.array([40, 60, -5, 9])
  bank, book = made_up(sizes)
  options = config.Sampling(
    budget=60,
    filter=config.Filter.THRESHOLD,
    estimate=config.Estimate.SCORE,
    density_power=0.5,
  )
  got = choose.samples(bank, book, _answer(scores, 10.0), options, KEY)
  weights = [s * math.sqrt(s / n) for s, n in ((40, 100), (60, 200))]
  first = round(60 * weights[0] / sum(weights))
  taken = np.bincount(got.clusters, minlength=4)
  np.testing.assert_array_equal(taken, [first, 60 - first, 0, 0])
  np.testing.assert_array_equal(book.assignment[got.indices], got.clusters)
  assert len(set(got.indices.tolist())) == 60
  # 100 votes for 60 samples: a sample stands for votes / quota of them.
  expected = np.array([40 / first, 60 / (60 - first)]) / (100 / 60)
  np.testing.assert_allclose(got.weights, expected[got.clusters], rtol=1e-6)
  assert got.indices.dtype == np.int64 and got.clusters.dtype == np.int32
  assert got.weights.dtype == np.float32
  rows = got.by_cluster()
  keys = list(zip(rows.clusters.tolist(), rows.indices.tolist(), strict=True))
  assert keys == sorted(keys)
  assert set(rows.indices) == set(got.indices)
  np.testing.assert_allclose(rows.weights, expected[rows.clusters], rtol=1e-6)


def test_the_covered_clusters_are_the_densest_with_most_votes():
  bank, book = made_up([100, 100, 100, 20])
  options = config.Sampling(budget=9, estimate=config.Estimate.SCORE)
  # 20 votes in 20 samples are denser than 20 in 100.
  scores = np.array([300, 1, 20, 19])
  got = choose.samples(bank, book, _answer(scores, 1.0), options, KEY)
  assert got.covered is not None
  np.testing.assert_array_equal(got.covered, [True, False, True, True])
  scores[2] = 12
  got = choose.samples(bank, book, _answer(scores, 1.0), options, KEY)
  assert got.covered is not None
  np.testing.assert_array_equal(got.covered, [True, False, False, True])


def test_the_papers_method_is_the_plain_proportion():
  bank, book = made_up([100, 100, 100])
  options = config.Sampling(method=config.Method.ECOS_PAPER, budget=40)
  scores = np.array([30, 90, 9])
  got = choose.samples(bank, book, _answer(scores, 10.0), options, KEY)
  taken = np.bincount(got.clusters, minlength=3)
  np.testing.assert_array_equal(taken, [10, 30, 0])


@pytest.mark.parametrize("within", list(config.Within))
def test_a_prefix_is_the_choice_for_its_quotas(within):
  bank, book = made_up([300, 120, 40, 7])
  options = config.Sampling(
    budget=90, within=within, estimate=config.Estimate.SCORE, density_power=0.0
  )
  scores = np.array([300, 90, 30, 20])
  whole = choose.samples(bank, book, _answer(scores, 1.0), options, KEY)
  quotas = np.bincount(whole.clusters, minlength=4)
  assert np.all(quotas < 0.7 * book.sizes)
  density = scores / book.sizes
  for b in (1, 2, 20, 55, 89):
    part = choose.Choice(*(array[:b] for array in whole)).by_cluster()
    counts = np.bincount(part.clusters, minlength=4)
    expected = sampling.decompress(bank, book, density, counts, options, KEY)
    np.testing.assert_array_equal(
      part.indices, np.concatenate([np.sort(rows) for rows in expected])
    )


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
  got = choose.top_up(
    np.array(weights, float), np.array(sizes), budget, np.array(before)
  )
  np.testing.assert_array_equal(got, expected)


def test_excluded_are_not_chosen_and_included_come_first():
  bank, book = made_up([100, 200, 50, 80])
  options = config.Sampling(budget=60, likely=1.0)
  answer = _answer(np.array([40, 60, -5, 9]), 3.0)
  first = choose.samples(bank, book, answer, options, KEY)
  got = choose.samples(bank, book, answer, options, KEY, excluded=first.indices)
  assert not set(got.indices) & set(first.indices)
  # The votes say the same of the clusters, whatever is left out.
  counts = [np.bincount(c.clusters, minlength=4) for c in (first, got)]
  np.testing.assert_array_equal(*counts)
  np.testing.assert_allclose(np.sort(got.weights), np.sort(first.weights))
  part = first.indices[:25]
  again = choose.samples(bank, book, answer, options, KEY, included=part)
  np.testing.assert_array_equal(again.indices[:25], part)
  assert len(set(again.indices.tolist())) == 60
  counts.append(np.bincount(again.clusters, minlength=4))
  np.testing.assert_array_equal(counts[0], counts[2])
  np.testing.assert_array_equal(book.assignment[again.indices], again.clusters)


def test_what_is_added_keeps_away_from_what_is_there():
  """Of nine places, each with many samples, two were chosen before."""
  random = np.random.default_rng(0)
  place = np.repeat(np.arange(9), 30)
  features = np.stack([place * 10.0, random.normal(size=270)], 1)
  book = codebook.Codebook(
    np.array([[40.0, 0.0]], np.float32),
    np.array([270]),
    np.zeros(270, np.int32),
  )
  options = config.Sampling(budget=9, likely=1.0)
  got = choose.samples(
    banks.Rows(features.astype(np.float32)),
    book,
    _answer(np.array([500]), 1.0),
    options,
    KEY,
    included=np.array([3, 250]),
  )
  assert sorted(place[got.indices]) == list(range(9))


@pytest.fixture(name="by_class", scope="module")
def _by_class():
  """A pool of three classes, its codebook, and an answer by class."""
  random = np.random.default_rng(5)
  places = 4 * random.normal(size=(3, 12))
  truth = random.integers(0, 3, 3000)
  pool = (places[truth] + random.normal(size=(3000, 12))).astype(np.float32)
  book = codebook.fit(pool, 4, KEY, directions=8)
  assert book.directions is not None
  # The client has 300, 150 and 50 of the classes.
  own = [np.flatnonzero(truth == k)[:n] for k, n in enumerate((300, 150, 50))]
  votes = coverage.signs(pool, *book.directions, 4)
  sums = [np.append(votes[r].sum(0, dtype=np.int64), len(r)) for r in own]
  answer = question.Combined(
    np.bincount(book.assignment[np.concatenate(own)], minlength=4),
    1.0,
    sums=np.stack(sums),
    scale=1.0,
    votes=4,
  )
  fitted = labels.fit(pool, book.directions, answer.sums, 1.0, KEY)
  assert np.mean(fitted.classify(pool) == truth) > 0.9
  return pool, book, answer, fitted


def test_quotas_prefer_dense_clusters_where_the_answer_has_classes(by_class):
  pool, book, answer, _ = by_class
  alone = answer._replace(sums=answer.sums.sum(axis=0, keepdims=True))
  for asked, power in ((answer, 0.5), (alone, 0.0)):
    got = [
      choose.samples(pool, book, asked, options, KEY).indices
      for options in (
        config.Sampling(budget=120),
        config.Sampling(budget=120, density_power=power),
        config.Sampling(budget=120, density_power=0.5 - power),
      )
    ]
    np.testing.assert_array_equal(got[0], got[1])
    assert set(got[0].tolist()) != set(got[2].tolist())


@pytest.mark.parametrize(
  ("classes", "expected"), [("balanced", [40] * 3), ("client", [72, 36, 12])]
)
def test_the_budget_is_divided_among_the_labels(by_class, classes, expected):
  pool, book, answer, fitted = by_class
  options = config.Sampling(budget=120, classes=config.Classes(classes))
  got = choose.samples(pool, book, answer, options, KEY, fitted)
  label = fitted.classify(pool)
  np.testing.assert_array_equal(np.bincount(label[got.indices]), expected)
  assert len(set(got.indices.tolist())) == 120
  np.testing.assert_array_equal(book.assignment[got.indices], got.clusters)
  # Every prefix has its part of each class.
  for b in range(121):
    counts = np.bincount(label[got.indices[:b]], minlength=3)
    assert np.all(abs(counts - b * np.array(expected) / 120) < 1)
  # What was chosen before counts: here only samples of the first class.
  before = np.flatnonzero(label == 0)[:50]
  more = choose.samples(
    pool, book, answer, options, KEY, fitted, included=before
  )
  np.testing.assert_array_equal(more.indices[:50], before)
  assert len(set(more.indices.tolist())) == 120
  taken = np.bincount(label[more.indices])
  over = max(50, expected[0])
  rest = np.array(expected[1:]) / sum(expected[1:]) * (120 - over)
  np.testing.assert_array_equal(taken, [over, *rest.astype(int)])


def test_a_class_that_is_too_small_gives_all_it_has(by_class):
  pool, book, answer, fitted = by_class
  label = fitted.classify(pool)
  few = np.flatnonzero(label == 2)[5:]
  options = config.Sampling(budget=65, classes=config.Classes.BALANCED)
  got = choose.samples(pool, book, answer, options, KEY, fitted, excluded=few)
  np.testing.assert_array_equal(np.bincount(label[got.indices]), [30, 30, 5])


def test_no_votes_choose_nothing():
  bank, book = made_up([10, 10])
  options = config.Sampling(estimate=config.Estimate.SCORE)
  with pytest.raises(errors.EcosError, match="no cluster has votes"):
    choose.samples(bank, book, _answer(np.array([-3, 0]), 10.0), options, KEY)
  options = dataclasses.replace(options, budget=0)
  with pytest.raises(errors.EcosError, match="`budget` must be > 0, got 0"):
    choose.samples(bank, book, _answer(np.array([3, 0]), 10.0), options, KEY)

import dataclasses
import fractions
import math

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
from scipy import stats

from ecos_jax import messages
from ecos_jax.client import coverage
from ecos_jax.privacy import mechanisms
from tests.client.queries import TERMS
from tests.client.queries import counts_of
from tests.client.queries import query_of

ANY_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def hostile(draw):
  """Features and centroids that a dishonest server could think of."""
  d = draw(st.integers(1, 6))
  n = draw(st.integers(1, 12))
  features = draw(hnp.arrays(np.float32, (n, d), elements=ANY_FLOAT32))
  kind = draw(st.sampled_from(["any", "equal", "samples", "ulps", "huge"]))
  if kind == "any":
    r = draw(st.integers(1, 8))
    centroids = draw(hnp.arrays(np.float32, (r, d), elements=ANY_FLOAT32))
  elif kind == "equal":
    centroids = np.repeat(features[:1], 5, axis=0)
  elif kind == "samples":
    centroids = features.copy()
  else:
    sign = draw(hnp.arrays(np.bool_, (7, d)))
    towards = np.where(sign, 1, -1).astype(np.float32)
    base = np.repeat(features[:1], 7, axis=0)
    centroids = np.nextafter(base, towards)
    if kind == "huge":
      centroids = (towards * np.float32(1e30)).astype(np.float32)
  return features, centroids


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(hostile(), st.data())
def test_one_sample_changes_one_count_by_one(case, data):
  features, centroids = case
  row = data.draw(st.integers(0, len(features) - 1))
  present = counts_of(features, centroids)
  absent = counts_of(np.delete(features, row, axis=0), centroids)
  difference = present - absent
  assert difference.sum() == 1
  assert np.abs(difference).sum() == 1
  assert present.sum() == len(features)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 100, 999])
def test_a_vote_depends_on_no_other_sample(n):
  # Centroids that differ in the last bits: products in float32 flip here.
  random = np.random.default_rng(0)
  features = random.normal(size=(1000, 72)).astype(np.float32)
  centroid = random.normal(size=72).astype(np.float32)
  towards = np.where(random.random((50, 72)) < 0.5, -9, 9).astype(np.float32)
  centroids = np.nextafter(centroid, towards)
  votes = coverage.nearest(features, centroids)
  assert len(np.unique(votes)) > 1
  np.testing.assert_array_equal(
    coverage.nearest(features[:n], centroids), votes[:n]
  )
  order = random.permutation(1000)[:n]
  np.testing.assert_array_equal(
    coverage.nearest(features[order], centroids), votes[order]
  )


def test_blocks_do_not_change_votes(monkeypatch):
  random = np.random.default_rng(1)
  features = random.normal(size=(101, 9)).astype(np.float32)
  centroids = random.normal(size=(13, 9)).astype(np.float32)
  votes = coverage.nearest(features, centroids)
  monkeypatch.setattr(coverage, "_LARGEST", 22 * 7)
  np.testing.assert_array_equal(coverage.nearest(features, centroids), votes)


@pytest.mark.parametrize(("r", "d"), [(1, 1), (10, 1), (100, 72), (30, 512)])
def test_nearest_agrees_with_distances_in_double_precision(r, d):
  random = np.random.default_rng(2)
  features = random.normal(size=(200, d)).astype(np.float32)
  centroids = random.normal(size=(r, d)).astype(np.float32)
  difference = features[:, None].astype(np.float64) - centroids
  distances = (difference**2).sum(axis=2)
  chosen = distances[np.arange(200), coverage.nearest(features, centroids)]
  np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=1e-5)


@pytest.mark.parametrize("d", [3, 512])
def test_a_mean_of_10_000_spreads_changes_only_rounding(d):
  random = np.random.default_rng(2)
  features = 1e4 + random.normal(size=(200, d)).astype(np.float32)
  centroids = 1e4 + random.normal(size=(30, d)).astype(np.float32)
  difference = features[:, None].astype(np.float64) - centroids
  distances = (difference**2).sum(axis=2)
  chosen = distances[np.arange(200), coverage.nearest(features, centroids)]
  np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=1e-5)
  directions = random.normal(size=(40, d)).astype(np.float32)
  mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
  z = (features - mean.astype(np.float64)) @ directions.astype(np.float64).T
  votes = coverage.signs(features, directions, mean, 1)
  largest = np.abs(z).argmax(axis=1)
  np.testing.assert_array_equal(np.abs(votes).argmax(axis=1), largest)
  rows = np.arange(200)
  np.testing.assert_array_equal(votes[rows, largest], np.sign(z[rows, largest]))


def test_scale_does_not_matter():
  random = np.random.default_rng(3)
  features = random.normal(size=(100, 4)).astype(np.float32)
  centroids = random.normal(size=(5, 4)).astype(np.float32)
  votes = coverage.nearest(features, centroids)
  for scale in (2.0**-100, 2.0**100):
    scaled = [np.float32(scale) * a for a in (features, centroids)]
    np.testing.assert_array_equal(coverage.nearest(*scaled), votes)


def test_ties_go_to_the_lowest_index():
  centroids = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
  features = np.array([[1, 1], [0, 0], [0, 2]], np.float32)
  assert coverage.nearest(features, centroids).tolist() == [0, 0, 1]


def test_a_sample_that_is_not_finite_votes_as_if_it_were_zero():
  centroids = np.array([[5, 5], [0, 0]], np.float32)
  features = np.array([[np.nan, np.inf], [-np.inf, 2], [1e300, 0]])
  assert counts_of(features, centroids).tolist() == [0, 3]


def test_no_sample_gives_no_votes():
  counts = counts_of(np.zeros((0, 3)), np.zeros((4, 3), np.float32))
  assert counts.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_centroids_that_are_not_finite_are_refused(value):
  centroids = np.array([[0, 0], [0, value]], np.float32)
  with pytest.raises(messages.ProtocolError, match="NaN"):
    coverage.nearest(np.zeros((1, 2)), centroids)


def test_features_of_another_dimension_are_refused():
  for features in (np.zeros((5, 3)), np.zeros(1237)):
    with pytest.raises(messages.ProtocolError, match="d = 2") as refusal:
      coverage.nearest(features, np.zeros((4, 2), np.float32))
    assert "1237" not in str(refusal.value)


def test_the_rounding_is_to_the_nearest_multiple_and_ties_to_even():
  random = np.random.default_rng(4)
  rows = random.normal(size=(40, 384)).astype(np.float32)
  rows *= np.float32(10.0) ** random.integers(-40, 30, (40, 1)).astype("f4")
  rows[0] = 0
  rows[1] = 2.0**21 + 0.5 + np.arange(384)  # halfway, from even and odd
  got = coverage.rounded(rows)
  # 384 products of at most 2^44 stay below 2^53.
  for row, exact in zip(got, rows.tolist(), strict=True):
    _, exponent = math.frexp(max(map(abs, exact)))
    unit = fractions.Fraction(2) ** (exponent - 22)
    # Python rounds fractions to even.
    expected = [
      float(round(fractions.Fraction(x) / unit) * unit) for x in exact
    ]
    assert row.tolist() == expected


@st.composite
def hostile_directions(draw):
  """Features, directions and a mean that a dishonest server could think of."""
  features, directions = draw(hostile())
  mean = draw(
    st.sampled_from([np.zeros_like(features[0]), features[0], -features[-1]])
  )
  if draw(st.booleans()):
    directions = np.repeat(directions[:1], len(directions), axis=0)
  return features, directions, mean, draw(st.integers(1, len(directions)))


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(hostile_directions(), st.integers(0, 4), st.data())
def test_one_sample_moves_only_its_votes(case, classes, data):
  features, directions, mean, votes = case
  query = query_of(
    None, directions=directions, mean=mean, votes=votes, classes=classes
  )
  n = len(features)
  labels = data.draw(hnp.arrays(np.int64, n, elements=st.integers(-2, 5)))
  row = data.draw(st.integers(0, n - 1))

  def sums(rows):
    cast = coverage.cast(query, features[rows], labels[rows])
    return coverage.exact(cast, query, np.ones((1, len(rows)), bool))[1][0]

  difference = sums(np.arange(n)) - sums(np.delete(np.arange(n), row))
  alone = sums(np.array([row]))
  np.testing.assert_array_equal(difference, alone)
  voting = not classes or 0 <= labels[row] < classes
  assert alone[:, -1].sum() == voting
  assert np.abs(alone[:, :-1]).max() <= 1
  assert np.abs(alone[:, :-1]).sum() <= votes * voting
  assert np.count_nonzero(alone.any(axis=1)) == voting


def test_labels_may_be_unsigned():
  random = np.random.default_rng(0)
  query = query_of(
    None,
    directions=random.normal(size=(4, 3)).astype(np.float32),
    mean=np.zeros(3, np.float32),
    votes=2,
    classes=3,
  )
  features = random.normal(size=(5, 3))
  for dtype in (np.uint8, np.uint64, np.int8):
    labels = np.array([0, 2, 3, 1, 0], dtype)
    votes = coverage.cast(query, features, labels)
    assert votes.rows.tolist() == [0, 2, -1, 1, 0]


@pytest.mark.parametrize("n", [1, 2, 3, 17, 100, 999])
def test_votes_on_directions_depend_on_no_other_sample(n):
  # Many directions that differ in the last bits: which is largest would flip.
  random = np.random.default_rng(0)
  features = random.normal(size=(1000, 72)).astype(np.float32)
  towards = np.where(random.random((50, 72)) < 0.5, -9, 9).astype(np.float32)
  directions = np.nextafter(random.normal(size=72).astype(np.float32), towards)
  mean = random.normal(size=72).astype(np.float32)
  votes = coverage.signs(features, directions, mean, 10)
  assert len(np.unique(votes, axis=0)) > 100
  order = random.permutation(1000)[:n]
  for rows in (slice(n), order):
    np.testing.assert_array_equal(
      coverage.signs(features[rows], directions, mean, 10), votes[rows]
    )


def test_signs_are_those_of_the_largest_coordinates():
  random = np.random.default_rng(5)
  features = random.normal(size=(300, 20)).astype(np.float32) + 3
  directions = random.normal(size=(16, 20)).astype(np.float16)
  mean = features.mean(axis=0)
  z = (features.astype(np.float64) - mean) @ directions.astype(np.float64).T
  cut = np.sort(np.abs(z), axis=1)[:, [-5]]
  expected = np.where(np.abs(z) >= cut, np.sign(z), 0)
  got = coverage.signs(features, directions, mean, 5)
  assert got.dtype == np.int8
  np.testing.assert_array_equal(got, expected)


def test_a_large_common_offset_does_not_change_signs():
  # All numbers are integers, so float32 holds them with the offset as well.
  random = np.random.default_rng(6)
  features = random.integers(-50, 50, (200, 8)).astype(np.float32)
  directions = random.normal(size=(6, 8)).astype(np.float32)
  mean, offset = np.zeros(8, np.float32), np.float32(2**20)
  np.testing.assert_array_equal(
    coverage.signs(features + offset, directions, mean + offset, 3),
    coverage.signs(features, directions, mean, 3),
  )


def test_signs_at_ties_at_the_mean_and_without_a_number():
  directions = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
  mean = np.array([1, 1], np.float32)
  features = np.array(
    [[2, 2], [1, 1], [1, -5], [np.nan, 3], [np.inf, np.nan], [1e300, 2]]
  )
  votes = coverage.signs(features, directions, mean, 2)
  assert votes.tolist() == [
    [1, 1, 0, 0],
    [0, 0, 0, 0],
    [0, -1, 0, -1],
    [0, 1, 0, 1],
    [0, 0, 0, 0],
    [0, 1, 0, 1],
  ]


def test_blocks_do_not_change_signs(monkeypatch):
  random = np.random.default_rng(1)
  features = random.normal(size=(101, 9)).astype(np.float32)
  directions = random.normal(size=(13, 9)).astype(np.float32)
  mean = np.zeros(9, np.float32)
  votes = coverage.signs(features, directions, mean, 6)
  monkeypatch.setattr(coverage, "_LARGEST", 22 * 7)
  np.testing.assert_array_equal(
    coverage.signs(features, directions, mean, 6), votes
  )


@pytest.mark.parametrize("classes", [0, 3])
def test_the_response_is_the_sums_with_the_noise_of_all_votes(
  features, classes
):
  random = np.random.default_rng(7)
  d = features.shape[1]
  query = query_of(
    features[:5],
    directions=random.normal(size=(8, d)).astype(np.float32),
    mean=features.mean(axis=0),
    votes=3,
    weight=2,
    classes=classes,
  )
  labels = random.integers(-1, 4, len(features))
  terms = messages.Terms(2, 1, 1e-5, "add_remove")
  mechanism = mechanisms.Mechanism(terms, bins=4, weight=2)
  responses = [
    coverage.respond(query, [features[:20], features[20:]], mechanism, labels)
    for _ in range(200)
  ]
  assert {r.statement for r in responses} == {mechanism.statement}
  # By hand: sample by sample.
  nearest = coverage.nearest(features, query.centroids)
  signs = coverage.signs(features, query.directions, query.mean, 3)
  counts, sums = np.zeros(5), np.zeros((max(classes, 1), 9))
  for i, label in enumerate(labels if classes else np.zeros(len(features))):
    counts[nearest[i]] += 2
    if 0 <= label < max(classes, 1):
      sums[int(label)] += [*signs[i], 1]
  scale = 2 * 8**0.5
  noise = [
    np.stack([r.scores for r in responses]) - counts,
    np.stack([r.sums for r in responses]) - sums,
  ]
  for part in noise:
    assert abs(part.mean()) < 6 * scale / part.size**0.5
    assert stats.kstest(part.ravel() / scale, "norm").statistic < 0.1


def test_a_mechanism_for_other_votes_is_not_used(features):
  query = query_of(features[:5])
  wrong = mechanisms.Mechanism(TERMS, bins=2)
  with pytest.raises(ValueError, match="number of votes"):
    coverage.respond(query, [features], wrong)


def test_the_response_is_coverage_with_the_stated_noise(features):
  query = query_of(features[:5])
  # Gamma 1 and repeated answers: the mean is the coverage.
  mechanism = mechanisms.Mechanism(messages.Terms(4, 1, 1e-5, "add_remove"))
  responses = [
    coverage.respond(query, [features[:20], features[20:]], mechanism)
    for _ in range(400)
  ]
  assert {r.query_digest for r in responses} == {query.digest}
  assert {r.statement for r in responses} == {mechanism.statement}
  noise = np.stack([r.scores for r in responses])
  noise = noise - counts_of(features, query.centroids)
  assert abs(noise.mean()) < 6 * 4 / noise.size**0.5
  assert stats.kstest(noise.ravel() / 4, "norm").statistic < 0.1


def test_release_subsamples_and_counts_each_repetition_on_its_own():
  points = np.array([[0, 0], [5, 0], [0, 5]], np.float32)
  query = query_of(points)
  votes = coverage.cast(query, np.repeat(points, [1000, 0, 500], axis=0))
  mechanism = mechanisms.Mechanism(TERMS)
  answers = coverage.release(votes, query, mechanism, repetitions=2000)
  assert answers.shape == (2000, 3)
  # Binomial counts plus noise.
  for column, count in enumerate((1000, 0, 500)):
    variance = count * 0.8 * 0.2 + 10.0**2
    error = answers[:, column].mean() - 0.8 * count
    assert abs(error) < 6 * (variance / 2000) ** 0.5
    assert answers[:, column].var() == pytest.approx(variance, rel=0.2)
  correlation = np.corrcoef(answers.T)
  assert np.abs(correlation - np.eye(3)).max() < 6 / 2000**0.5


@pytest.mark.parametrize("blocks", [0, 1])
def test_no_sample_is_answered_with_noise(features, blocks):
  query = query_of(features[:5])
  empty = [features[:0]] * blocks
  response = coverage.respond(query, empty, mechanisms.Mechanism(TERMS))
  assert np.abs(response.scores).max() < 120


def test_a_seed_gives_the_same_response_and_says_so(features):
  query = query_of(features[:5])
  seeded = mechanisms.Mechanism(TERMS, insecure_noise_seed=3)
  first = coverage.respond(query, [features], seeded)
  again = coverage.respond(query, [features], seeded)
  # Without a ledger each has a random id.
  same = dataclasses.replace(again, client=first.client)
  assert first.to_bytes() == same.to_bytes()
  assert not first.statement.private

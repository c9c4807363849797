import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
from sklearn import neighbors

from ecos_jax.client import neighbours

CLASSES = 4


def _data(n=700, d=6, seed=0):
  random = np.random.default_rng(seed)
  features = random.normal(size=(n, d)).astype(np.float32)
  return random, features, random.integers(0, CLASSES, n)


def _votes(features, labels, requests, taken, k, **options):
  voters = neighbours.Neighbours(features, labels, k, CLASSES, **options)
  parts = [
    voters.votes(requests[i : i + voters.rows], taken[i : i + voters.rows])
    for i in range(0, len(requests), voters.rows)
  ]
  return np.concatenate(parts)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_the_class_is_that_of_scikit_learn_on_the_same_subsample(k):
  random, features, labels = _data()
  requests = random.normal(size=(40, 6)).astype(np.float32)
  taken = random.random((40, 700)) < 0.3
  votes = _votes(features, labels, requests, taken, k)
  assert (votes.sum(1) == k).all()
  for row in range(40):
    model = neighbors.KNeighborsClassifier(k)
    model.fit(features[taken[row]], labels[taken[row]])
    assert votes[row].argmax() == model.predict(requests[row : row + 1])[0]
    shares = model.predict_proba(requests[row : row + 1])[0]
    np.testing.assert_allclose(votes[row] / k, shares)


def test_blocks_of_any_size_give_the_same_votes(monkeypatch):
  random, features, labels = _data()
  requests = random.normal(size=(23, 6)).astype(np.float32)
  taken = random.random((23, 700)) < 0.5
  whole = _votes(features, labels, requests, taken, 30)
  few = _votes(features, labels, requests, taken, 30, memory_budget=200_000)
  np.testing.assert_array_equal(few, whole)
  # Blocks of private samples that are smaller than k, and one that is not full.
  monkeypatch.setattr(neighbours, "_SAMPLES", 16)
  np.testing.assert_array_equal(
    _votes(features, labels, requests, taken, 30), whole
  )


def test_a_mean_of_10_000_spreads_changes_only_rounding():
  random, features, labels = _data()
  requests = random.normal(size=(40, 6)).astype(np.float32)
  offset = np.float32(1e4)
  features, requests = features + offset, requests + offset
  taken = np.ones((40, 700), bool)
  votes = _votes(features, labels, requests, taken, 9, offset=offset)
  model = neighbors.KNeighborsClassifier(9, algorithm="brute")
  model.fit(features.astype(np.float64) - offset, labels)
  shares = model.predict_proba(requests.astype(np.float64) - offset)
  np.testing.assert_allclose(votes / 9, shares)


def test_a_subsample_of_fewer_than_k_votes_as_a_whole():
  random, features, labels = _data(50)
  requests = random.normal(size=(3, 6)).astype(np.float32)
  taken = np.zeros((3, 50), bool)
  taken[1, :8] = True
  votes = _votes(features, labels, requests, taken, 1000)
  assert votes.sum(1).tolist() == [0, 8, 0]
  np.testing.assert_array_equal(
    votes[1], np.bincount(labels[:8], minlength=CLASSES)
  )


def test_equal_distances_go_by_the_order_of_the_data():
  features = np.ones((5, 2), np.float32)
  labels = np.array([3, 2, 1, 0, 0])
  votes = _votes(features, labels, features[:1], np.ones((1, 5), bool), 2)
  assert votes.tolist() == [[0, 0, 1, 1]]


# Few distinct values, so that there are many ties; huge and tiny scales, so
# that inexact products would depend on their place.
@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
  st.integers(0, 2**32 - 1),
  st.integers(0, 12),
  st.integers(1, 6),
  st.sampled_from([1e-20, 1e-3, 1.0, 1e20, 3e38]),
  st.booleans(),
)
def test_a_sample_adds_a_vote_and_takes_at_most_one(
  seed, place, k, scale, coarse
):
  random = np.random.default_rng(seed)
  features = random.normal(size=(13, 3))
  if coarse:
    features = np.round(features)
  features = np.clip(features * scale, -3e38, 3e38).astype(np.float32)
  labels = random.integers(0, CLASSES, 13)
  requests = np.concatenate([features[:4], features[:4] * np.float32(0.999)])
  taken = random.random((8, 13)) < 0.7
  taken[:, place] = True
  with_it = _votes(features, labels, requests, taken, k)
  without = _votes(
    np.delete(features, place, 0),
    np.delete(labels, place),
    requests,
    np.delete(taken, place, 1),
    k,
  )
  change = with_it - without
  assert (np.maximum(change, 0).sum(1) <= 1).all()
  assert (np.maximum(-change, 0).sum(1) <= 1).all()
  # It comes only where it votes for its own class.
  rows, classes = np.nonzero(change > 0)
  assert (classes == labels[place]).all(), rows
  assert (np.abs(with_it.max(1) - without.max(1)) <= 1).all()


def test_nan_in_a_sample_counts_as_zero():
  _, features, labels = _data(20)
  broken = features.copy()
  broken[3] = np.nan
  features[3] = 0
  taken = np.ones((5, 20), bool)
  np.testing.assert_array_equal(
    _votes(broken, labels, features[:5], taken, 4),
    _votes(features, labels, features[:5], taken, 4),
  )


def test_many_classes_are_counted_for_a_few_requests_at_once():
  """512 requests and 100,000 classes took 4 GB."""
  features, labels = np.zeros((4, 2)), np.zeros(4, np.int64)
  few = neighbours.Neighbours(features, labels, 2, 10)
  many = neighbours.Neighbours(features, labels, 2, 100_000)
  assert few.rows == 512
  assert many.rows * 100_000 * 128 <= 2**28

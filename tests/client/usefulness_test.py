import dataclasses

import numpy as np
import pytest

from ecos_jax.client import encoding
from ecos_jax.client import usefulness
from ecos_jax.privacy import accounting
from ecos_jax.privacy import mechanisms
from tests.client import label_requests
from tests.client import queries

QUERY = queries.query_of(np.eye(40, 72, dtype=np.float32))


def _private(n, **more):
  return encoding.Private(n, lambda: [], **more)


def _scores(n, sigma=10.0, unit="sample", **more):
  mechanism = mechanisms.Mechanism.of(
    None, sigma, 0.8, 1e-5, "add_remove", unit=unit
  )
  return usefulness.of_scores(QUERY, mechanism, _private(n, **more))


def test_enough_samples_give_no_warning():
  # 0.8 of 500 over 40 centroids: ten votes for each, as much as the noise.
  assert _scores(500) == ""
  assert _scores(499) != ""


def test_counts_that_drown_are_told_with_what_to_change():
  told = _scores(200)
  # 4 votes a centroid, and 16 centroids get 10 each.
  assert "sigma of 4 " in told and "16 centroids" in told
  price = accounting.epsilon(4.0, 0.8, 1e-5, "add_remove")
  assert f"epsilon {price:.2g}" in told
  assert _scores(200, sigma=4.0) == ""
  # 7 such clients have 28 votes a centroid, and noise of 26.5; 6 have too few.
  assert "the sum of 7 answers" in told and "gamma" not in told
  assert "200" not in told
  assert "too few" in _scores(1)
  assert "noise alone" in _scores(0)


def test_a_larger_part_of_the_samples_may_do():
  told = _scores(450)
  # .8 of 450 are 9 a centroid; .89 of them are 10.
  price = accounting.epsilon(10.0, 0.89, 1e-5, "add_remove")
  assert f"a gamma of 0.89 (epsilon {price:.2g}) would do" in told
  assert "the sum of 2 answers" in told


def test_fewer_centroids_are_advised_if_their_counts_would_do():
  query = dataclasses.replace(
    QUERY,
    directions=np.eye(8, 72, dtype=np.float32),
    mean=np.zeros(72, np.float32),
    votes=8,
    weight=3,
  )

  def told(sigma):
    mechanism = mechanisms.Mechanism.of(
      *(None, sigma, 0.8, 1e-5, "add_remove"),
      bins=query.bins,
      weight=query.weight,
    )
    return usefulness.of_scores(query, mechanism, _private(50))

  # 40 voters add 3 each to the counts: 120. The noise is 18 ** 0.5 sigma,
  # 42.4 and 84.9: two clusters can have so much, or none.
  assert "about 2 centroids or fewer" in told(10.0)
  assert "most counts would drown" in told(20.0)
  assert "centroids" not in told(20.0)


def test_of_persons_the_number_counts():
  ids = np.arange(500) // 10
  assert _scores(500) == ""
  told = _scores(500, unit="person", persons=ids)
  assert "of your persons" in told and "sigma of 1 " in told


def _labels(labels, threshold=6.0, unit="sample", **more):
  terms = label_requests.changed(threshold=threshold, unit=unit)
  labels = np.asarray(labels)
  private = _private(len(labels), labels=labels, **more)
  return usefulness.of_labels(terms, private)


def test_labels_that_noise_decides_are_told():
  # gamma is 0.5, k 15, the threshold 6.
  assert _labels([0] * 12) == ""
  assert "threshold 6" in _labels([0] * 11)
  assert "threshold 6" in _labels([0] * 11 + [7] * 99 + [-1] * 99)
  assert "threshold 16" in _labels([0] * 99, threshold=16.0)
  ids = np.arange(99) // 10
  assert "of your persons" in _labels([0] * 99, unit="person", persons=ids)


@pytest.mark.parametrize("labels", [np.zeros(0, int), [-1, -1], [3, 9]])
def test_no_labelled_sample_is_told(labels):
  assert "no sample has a label" in _labels(labels)

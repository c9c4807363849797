"""What the owner reads; the figures are those of docs/privacy.md."""

import numpy as np

from ecos_jax.client import consent
from ecos_jax.client import private_knn
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms
from tests.client import label_requests
from tests.client import queries

_CENTROIDS = np.zeros((3, 324))


def _mechanism(query, unit="sample"):
  return mechanisms.Mechanism.of(
    *(None, 10.0, 0.8, 1e-5, "add_remove", None),
    query.bins,
    query.weight,
    unit=unit,
  )


def test_counts_say_what_leaves_and_what_it_costs():
  query = queries.query_of(_CENTROIDS)
  text = consent.scores(query, _mechanism(query))
  for part in (
    "which of 3 centroids",
    "leaves   3 integers: counts; of a random 0.8 of the samples",
    "noise of scale 10 (sigma 10)",
    "a random number that your answers to this query share",
    "epsilon 0.276049 per sample (delta 1e-05, add_remove)",
    "noise is 0.5838",
  ):
    assert part in text


def test_signed_votes_by_class_of_persons():
  query = queries.query_of(
    None,
    directions=np.eye(5, 324, dtype=np.float32),
    mean=np.zeros(324, np.float32),
    votes=3,
    classes=2,
  )
  text = consent.scores(query, _mechanism(query, "person"))
  for part in (
    "the 3 of 5 directions",
    # Two classes, and one more sum for the voters of each.
    "12 integers: sums of these votes, for each of 2 classes",
    "one sample each of a random 0.8 of the persons",
    # Four numbers change by one.
    "noise of scale 20 (sigma 10)",
    "per person",
  ):
    assert part in text


def test_labels_say_how_many_and_whose_terms():
  request = label_requests.request_for(np.zeros((20, 324), np.float32))
  labeller = private_knn.plan(request.terms, 20, epsilon=5.0)
  text = consent.labels(request, labeller)
  assert "each of 20 public samples" in text
  assert f"up to {labeller.answers} labels" in text
  assert "(the request's proposal)" not in text
  changed = label_requests.changed(threshold=3.5)
  text = consent.labels(request, private_knn.plan(changed, 20, epsilon=5.0))
  assert "threshold 3.5" in text and "(the request's proposal)" in text


def test_what_is_left_in_the_ledger(tmp_path):
  query = queries.query_of(_CENTROIDS)
  cost = _mechanism(query).cost
  for most, left in ((2.0, "1.72395 is left of 2"), (np.inf, "no limit")):
    path = tmp_path / f"{most}"
    ledger.create(path, max_epsilon=most)
    text = consent.ledger(ledger.read(path), cost)
    assert "epsilon 0 spent before, 0.276049 after" in text
    assert left in text

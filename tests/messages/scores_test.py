import dataclasses
import math

import numpy as np
import pytest

from ecos_jax import messages
from ecos_jax.config import limits
from tests.messages import examples


@pytest.mark.parametrize(
  "centroids",
  [
    np.zeros((2, 3)),
    np.zeros(3, np.float32),
    np.zeros((0, 3), np.float32),
    np.zeros((2, 0), np.float32),
    np.zeros((2, limits.MAX_DIMENSION + 1), np.float32),
    np.zeros((limits.MAX_CENTROIDS + 1, 1), np.float32),
    np.array([[np.nan]], np.float32),
    np.array([[np.inf]], np.float32),
    np.array([[np.inf]], np.float16),
    [[1.0]],
  ],
)
def test_centroids_are_checked(centroids):
  with pytest.raises(messages.ProtocolError, match="centroids"):
    dataclasses.replace(examples.QUERY, centroids=centroids)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_and_centroids_are_of_two_bytes_or_four(dtype):
  numbers = np.arange(6, dtype=dtype).reshape(2, 3) / 8
  query = dataclasses.replace(examples.QUERY, centroids=numbers)
  received = messages.Query.from_bytes(query.to_bytes()).centroids
  assert received.dtype == dtype
  np.testing.assert_array_equal(received, numbers)


def test_the_limits_of_size_include_the_largest():
  largest = np.zeros((limits.MAX_CENTROIDS, 2), np.float32)
  dataclasses.replace(examples.QUERY, centroids=largest)
  huge = np.broadcast_to(np.float32(0), (50_000, 8192))
  with pytest.raises(messages.ProtocolError, match="smaller than"):
    dataclasses.replace(examples.QUERY, centroids=huge)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("encoder_name", "hog\x1b[2J"),
    ("encoder_name", ""),
    ("encoder_name", "h" * 129),
    ("encoder_name", 3),
    ("encoder_digest", "AB" * 32),
    ("encoder_digest", "ab" * 31),
    ("encoder_settings", []),
    ("encoder_settings", {"cell": None}),
    ("encoder_settings", {"cell": True}),
    ("encoder_settings", {"cell": 2**60}),
    ("encoder_settings", {"norm": "\n"}),
    ("encoder_settings", {"a b": 1}),
    ("encoder_settings", {str(i): i for i in range(65)}),
    ("sigma", "5"),
    ("sigma", True),
    ("sigma", 0),
    ("sigma", 10**400),
    ("gamma", 1.5),
    ("delta", 0.5),
    ("relation", "bounded"),
    ("relation", []),
    ("version", 1),
    ("kind", "response"),
    ("sigma", ...),
    ("encoder_digest", ...),
    ("surprise", 1),
  ],
)
def test_fields_of_a_query_are_checked(field, value):
  with pytest.raises(messages.ProtocolError) as refusal:
    messages.Query.from_bytes(
      examples.with_fields(examples.QUERY, **{field: value})
    )
  assert field in str(refusal.value) or "unknown field" in str(refusal.value)
  assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("query_digest", "x"),
    ("mechanism", "laplace"),
    ("epsilon", -1.0),
    ("epsilon", 1e7),
    ("private", 1),
    ("private", ...),
  ],
)
def test_fields_of_a_response_are_checked(field, value):
  with pytest.raises(messages.ProtocolError, match=field):
    messages.Response.from_bytes(
      examples.with_fields(examples.RESPONSE, **{field: value})
    )


def test_scores_beyond_the_stated_noise_are_refused():
  for score in (-60, limits.MAX_SAMPLES + 60):
    dataclasses.replace(examples.RESPONSE, scores=np.array([score]))
  for score in (-61, limits.MAX_SAMPLES + 61):
    with pytest.raises(messages.ProtocolError, match="scores"):
      dataclasses.replace(examples.RESPONSE, scores=np.array([score]))


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"centroids": None, "weight": 0}, None),
    ({"classes": 0}, None),
    ({"votes": 4}, None),
    ({"centroids": None}, "weight"),
    ({"weight": 0}, "weight"),
    ({"weight": 33}, "weight"),
    ({"votes": 0}, "votes"),
    ({"votes": 5}, "votes"),
    ({"mean": None}, "mean"),
    ({"mean": np.zeros(2, np.float32)}, "mean"),
    ({"mean": np.array([0, 0, np.nan], np.float32)}, "mean"),
    ({"mean": np.zeros((1, 3), np.float32)}, "mean"),
    ({"directions": None}, "directions"),
    ({"directions": np.full((4, 3), np.inf, np.float32)}, "directions"),
    ({"directions": np.zeros((1025, 3), np.float32)}, "directions"),
    ({"directions": np.zeros((4, 2), np.float32)}, "mean"),
    ({"centroids": np.zeros((4, 2), np.float32)}, "centroids"),
    ({"centroids": None, "directions": None}, "centroids or directions"),
    ({"classes": -1}, "classes"),
    ({"classes": 2**19}, "classes"),
    (
      {"terms": dataclasses.replace(examples.TERMS, relation="replace_one")},
      "relation",
    ),
    (
      {"weight": 32, "terms": dataclasses.replace(examples.TERMS, sigma=256.0)},
      "sigma",
    ),
  ],
)
def test_the_parts_of_a_question_must_fit_together(changes, match):
  if match is None:
    dataclasses.replace(examples.BOTH, **changes)
  else:
    with pytest.raises(messages.ProtocolError, match=match):
      dataclasses.replace(examples.BOTH, **changes)


def test_a_question_may_not_ask_for_endless_sums():
  directions = np.zeros((1024, 3), np.float32)
  dataclasses.replace(examples.BOTH, directions=directions, classes=1000)
  with pytest.raises(messages.ProtocolError, match="classes times"):
    dataclasses.replace(examples.BOTH, directions=directions, classes=1024)


def test_sums_beyond_the_stated_noise_are_refused():
  span = math.ceil(12 * 5.0 * 12**0.5)
  most = limits.MAX_SAMPLES + span
  for row in ([most, -most, -span], [-most, 0, most]):
    dataclasses.replace(examples.SUMS, sums=np.array([row]))
  for row in ([most + 1, 0, 0], [0, -most - 1, 0], [0, 0, -span - 1]):
    with pytest.raises(messages.ProtocolError, match="sums"):
      dataclasses.replace(examples.SUMS, sums=np.array([row]))
  with pytest.raises(messages.ProtocolError, match="scores or sums"):
    dataclasses.replace(examples.SUMS, sums=None, scores=None)

import dataclasses
import hashlib

import numpy as np
import pytest

from ecos_jax import config
from ecos_jax import messages
from ecos_jax.cloud import codebook
from ecos_jax.cloud import question
from ecos_jax.encoders import registry

TERMS = messages.Terms(3.0, 0.8, 1e-5, "add_remove")
STATEMENT = messages.Statement(3.0, 0.8, 1e-5, "add_remove", 1.1, True)


def _make(centroids, terms=TERMS):
  book = codebook.Codebook(centroids, np.ones(len(centroids)), np.zeros(9))
  return question.make(book, registry.get("hog"), terms, config.Codebook())


@pytest.fixture(name="asked")
def _asked():
  encoder = registry.get("hog")
  centroids = np.random.default_rng(0).random(
    (4, encoder.dimension), np.float32
  )
  return _make(centroids)


def _response(asked, scores, sigma=3.0):
  statement = dataclasses.replace(STATEMENT, sigma=sigma)
  return messages.Response(np.array(scores), asked.digest, statement)


def test_a_query_carries_the_encoder_and_survives_the_wire(asked):
  encoder = registry.get("hog")
  data = asked.to_bytes()
  received = messages.Query.from_bytes(data)
  assert received.encoder_name == "hog"
  assert received.encoder_settings == encoder.settings
  assert received.encoder_digest == encoder.digest
  assert received.terms == TERMS
  assert received.digest == asked.digest == hashlib.sha256(data).hexdigest()
  np.testing.assert_array_equal(received.centroids, asked.centroids)


def test_centroids_of_two_bytes_are_sent_in_two_bytes(asked):
  narrow = asked.centroids.astype(np.float16).astype(np.float32)
  sent = _make(narrow)
  assert asked.centroids.dtype == np.float32
  assert sent.centroids.dtype == np.float16
  np.testing.assert_array_equal(sent.centroids, narrow)
  fewer = len(asked.to_bytes()) - len(sent.to_bytes())
  assert abs(fewer - narrow.nbytes // 2) < 16


@pytest.mark.parametrize("number", [1e6, 1e-9])
def test_centroids_that_two_bytes_cannot_hold_are_sent_in_four(number):
  centroids = np.full((4, 72), number, np.float32)
  sent = _make(centroids)
  np.testing.assert_array_equal(sent.centroids, centroids)


def test_a_response_to_another_query_is_refused(asked):
  other = _make(asked.centroids, dataclasses.replace(TERMS, sigma=4.0))
  data = _response(other, [1, 2, 3, 4]).to_bytes()
  with pytest.raises(messages.ProtocolError, match="answers query"):
    question.read(data, asked)


def test_a_response_of_another_length_is_refused(asked):
  data = _response(asked, [1, 2, 3]).to_bytes()
  with pytest.raises(messages.ProtocolError, match=r"\(3,\) scores"):
    question.read(data, asked)


def test_combine_adds_scores_and_keeps_each_statement(asked):
  sent = [_response(asked, [1, -2, 3, 4]), _response(asked, [10, 0, 0, 1], 4.0)]
  received = [question.read(response.to_bytes(), asked) for response in sent]
  combined = question.combine(received, asked)
  assert combined.scores.tolist() == [11, -2, 3, 5]
  assert combined.scores.dtype == np.int64
  assert combined.sigma == pytest.approx(5.0)
  assert combined.statements == tuple(r.statement for r in sent)


def test_combine_refuses_nothing_and_strangers(asked):
  with pytest.raises(messages.ProtocolError, match="no response"):
    question.combine([], asked)
  stranger = dataclasses.replace(
    _response(asked, [0, 0, 0, 0]), query_digest="0" * 64
  )
  with pytest.raises(messages.ProtocolError, match="another query"):
    question.combine([stranger], asked)

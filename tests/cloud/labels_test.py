import dataclasses

import numpy as np
import pytest

from ecos_jax import messages
from ecos_jax.cloud import labels
from ecos_jax.encoders import registry

TERMS = messages.LabelTerms(10, 5, 8.0, 4.0, 3.0, 0.5, 1e-5, "add_remove")


@pytest.fixture(name="asked")
def _asked():
  encoder = registry.get("hog")
  features = np.random.default_rng(0).random((4, encoder.dimension))
  return labels.request(features.astype(np.float16), encoder, TERMS)


def _answer(asked, given, **changes):
  fields = {
    "labels": np.array(given, np.int32),
    "request_digest": asked.digest,
    "terms": TERMS,
    "mechanism": messages.LABEL_MECHANISM,
    "answers": len(given),
    "considered": len(given),
    "epsilon": 1.0,
    "private": True,
  }
  return messages.LabelResponse(**fields | changes)


def test_a_request_carries_the_encoder_and_survives_the_wire(asked):
  received = messages.LabelRequest.from_bytes(asked.to_bytes())
  assert received.encoder_digest == registry.get("hog").digest
  assert received.terms == TERMS
  assert received.digest == asked.digest
  assert received.features.dtype == np.float16
  np.testing.assert_array_equal(received.features, asked.features)


def test_an_answer_is_read(asked):
  sent = _answer(asked, [3, -1, 9, 0])
  received = labels.read(sent.to_bytes(), asked)
  assert received.labels.tolist() == [3, -1, 9, 0]
  assert (received.answers, received.considered) == (4, 4)


def test_forged_and_foreign_answers_are_refused(asked):
  other = dataclasses.replace(asked, features=asked.features + 1)
  fewer = dataclasses.replace(TERMS, classes=5)
  for answer, message in (
    (_answer(other, [1, 2, 3, 4]), "not"),
    (_answer(asked, [1, 2, 3]), "3 labels for 4"),
    (_answer(asked, [1, 2, 3, 4], terms=fewer), "classes is 5"),
  ):
    with pytest.raises(messages.ProtocolError, match=message):
      labels.read(answer.to_bytes(), asked)
  data = _answer(asked, [1, 2, 3, 4]).to_bytes()
  for hostile in (b"", data[:-1], data + b"\0", asked.to_bytes()):
    with pytest.raises(messages.ProtocolError):
      labels.read(hostile, asked)


@pytest.mark.parametrize(
  ("given", "changes", "message"),
  [
    ([0, 10, 1, -1], {}, "labels must be in"),
    ([0, 1, 1, -1], {"answers": 2}, "at most 2"),
    ([0, 1, -1, -1], {"answers": 2}, "considered"),
    ([0, 1, -1, -1], {"answers": 3, "considered": 2}, "considered"),
    ([0, 1, -1, -1], {"answers": 5}, "answers"),
    ([0, 1, -1, -1], {"answers": 0}, "answers"),
    ([0, 1, -1, -1], {"epsilon": float("nan")}, "epsilon"),
  ],
)
def test_numbers_that_do_not_fit_together_are_refused(
  asked, given, changes, message
):
  with pytest.raises(messages.ProtocolError, match=message):
    _answer(asked, given, **changes)


def test_a_client_that_stopped_early_says_so(asked):
  answer = _answer(asked, [0, 1, -1, -1], answers=2, considered=2)
  assert labels.read(answer.to_bytes(), asked).considered == 2

import dataclasses

import jax
import numpy as np
import pytest

from ecos_jax import messages
from ecos_jax.client import coverage
from ecos_jax.cloud import directions
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


@pytest.fixture(name="blobs", scope="module")
def _blobs():
  """A pool of three classes, and the votes of a client by class."""
  random = np.random.default_rng(5)
  places = 4 * random.normal(size=(3, 12))
  truth = random.integers(0, 3, 3000)
  pool = (places[truth] + random.normal(size=(3000, 12))).astype(np.float32)
  axes = directions.fit(pool, 8, jax.random.key(1))
  votes = coverage.signs(pool[:1000], *axes, 4)
  own = truth[:1000]
  sums = np.stack(
    [
      np.append(votes[own == k].sum(axis=0, dtype=np.int64), sum(own == k))
      for k in range(3)
    ]
  )
  return pool, truth, axes, sums


def _posterior(blobs, sums, scale):
  pool, _, axes, _ = blobs
  fitted = labels.fit(pool, axes, sums, scale, jax.random.key(2))
  found = fitted.posterior(pool[1000:])
  np.testing.assert_array_equal(
    fitted.classify(pool)[1000:], found.argmax(axis=1)
  )
  return found


def test_the_votes_of_each_class_label_the_pool(blobs):
  _, truth, _, sums = blobs
  for scale in (1e-3, 5.0):
    noise = np.random.default_rng(6).normal(0, scale, sums.shape).round()
    found = _posterior(blobs, sums + noise.astype(int), scale)
    assert found.shape == (2000, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert np.mean(found.argmax(axis=1) == truth[1000:]) > 0.9
  # Surer labels are more often right.
  sure = found.max(axis=1) > np.median(found.max(axis=1))
  right = found.argmax(axis=1) == truth[1000:]
  assert right[sure].mean() >= right[~sure].mean()


def test_noise_alone_gives_every_sample_the_odds_of_the_classes(blobs):
  sums = np.zeros((3, 9), np.int64)
  sums[:, -1] = [3000, 2000, 1000]
  found = _posterior(blobs, sums, 900.0)
  np.testing.assert_allclose(found, np.tile([3 / 6, 2 / 6, 1 / 6], (2000, 1)))


def test_the_posterior_is_its_formula(blobs):
  pool, _, axes, sums = blobs
  found = _posterior(blobs, sums, 0.0)
  z = (pool.astype(np.float64) - axes.mean) @ axes.axes.T.astype(np.float64)
  z = (z / z.std(axis=0))[1000:]
  means = sums[:, :-1] / sums[:, -1:]
  logs = 1.5 * z @ means.T - 0.75 * (means**2).sum(axis=1) + np.log(sums[:, -1])
  expected = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(found, expected, atol=1e-3)

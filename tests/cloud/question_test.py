import dataclasses
import hashlib

import numpy as np
import pytest

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.cloud import codebook
from ecos_jax.cloud import directions
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
  sent = [_response(asked, [1, -2, 3, 4]), _response(asked, [10, 0, 0, 1])]
  received = [question.read(response.to_bytes(), asked) for response in sent]
  combined = question.combine(received, asked)
  assert combined.scores.tolist() == [11, -2, 3, 5]
  assert combined.scores.dtype == np.int64
  assert combined.sigma == pytest.approx(18**0.5)
  assert combined.statements == tuple(r.statement for r in sent)


def test_more_noise_counts_less(asked):
  # 1 / 9 and 1 / 36 are 4 to 1; their mean is to be 1.
  sent = [_response(asked, [5, 0, 10, -5]), _response(asked, [5, 10, 0, 0], 6)]
  combined = question.combine(sent, asked)
  np.testing.assert_allclose(combined.scores, [10, 4, 16, -8])
  assert combined.sigma == pytest.approx(
    ((1.6 * 3) ** 2 + (0.4 * 6) ** 2) ** 0.5
  )


def test_two_answers_of_one_client_are_no_sum(asked):
  one = _response(asked, [5, 0, 10, -5])
  again = dataclasses.replace(
    _response(asked, [5, 10, 0, 0]), client=one.client
  )
  with pytest.raises(messages.ProtocolError, match="of one client"):
    question.combine([one, again], asked)


@pytest.mark.parametrize(
  "terms", [[(3.0, 0.8)], [(3.0, 0.8), (5.0, 0.5), (12.0, 1.0)]]
)
def test_the_variance_of_a_sum_is_as_theory_says(asked, terms):
  """Over 10,000 answers, a tenth of them in each of 1,000 sums.

  The votes of all clients are alike, and have no noise from the subsample: the
  least variance that an unbiased linear estimate of them can have is
  1 / sum(gamma^2 / sigma^2).
  """
  random = np.random.default_rng(3)
  truth = random.integers(0, 200, 50)
  of = [terms[i % len(terms)] for i in range(10)]
  statements = [
    dataclasses.replace(STATEMENT, sigma=sigma, gamma=gamma)
    for sigma, gamma in of
  ]
  sigmas, gammas = np.array(of).T
  noise = random.normal(size=(1000, 10, 50)) * sigmas[:, None]
  answers = np.rint(gammas[:, None] * truth + noise).astype(np.int64)
  estimates = []
  for one in answers:
    responses = [
      messages.Response(scores, asked.digest, statement)
      for scores, statement in zip(one, statements, strict=True)
    ]
    combined = question.combine(responses, asked)
    # What the sum would be without noise, for one vote of every client.
    unit = question.weights(statements) @ gammas
    estimates.append(combined.scores / unit)
  errors = np.array(estimates) - truth
  # Rounding adds a twelfth.
  best = 1 / np.sum(gammas**2 / (sigmas**2 + 1 / 12))
  assert abs(errors.mean()) < 4 * (best / errors.size) ** 0.5
  assert errors.var() == pytest.approx(best, rel=0.02)
  assert errors.var() == pytest.approx((combined.sigma / unit) ** 2, rel=0.02)


def test_combine_refuses_nothing_and_strangers(asked):
  with pytest.raises(messages.ProtocolError, match="no response"):
    question.combine([], asked)
  stranger = dataclasses.replace(
    _response(asked, [0, 0, 0, 0]), query_digest="0" * 64
  )
  with pytest.raises(messages.ProtocolError, match="another query"):
    question.combine([stranger], asked)


@pytest.fixture(name="both")
def _both(asked):
  random = np.random.default_rng(1)
  d = asked.dimension
  axes = directions.Directions(
    random.normal(size=(3, d)).astype(np.float16).astype(np.float32),
    random.normal(size=d).astype(np.float32),
  )
  book = codebook.Codebook(asked.centroids, np.ones(4), np.zeros(9), axes)
  options = config.Codebook(question=config.Question.BOTH, votes=2, weight=5)
  query = question.make(book, registry.get("hog"), TERMS, options, classes=2)
  assert question.is_about(query, book)
  assert not question.is_about(query, book._replace(directions=None))
  return query


def test_classes_are_not_ignored_where_only_counts_are_asked(asked):
  book = codebook.Codebook(asked.centroids, np.ones(4), np.zeros(9))
  # Without directions `auto` asks for counts.
  with pytest.raises(errors.EcosError, match="`classes` is for signed votes"):
    question.ask(book, "hog", classes=2)


def _full_response(query, scores, sums, **changes):
  statement = dataclasses.replace(STATEMENT, bins=3, weight=5)
  return messages.Response(
    np.array(scores),
    query.digest,
    dataclasses.replace(statement, **changes),
    np.array(sums),
  )


def test_answers_about_both_are_added_up_in_votes(both):
  assert both.directions.dtype == np.float16
  sums = [[1, 2, 3, 4], [5, 6, 7, 8]]
  sent = [_full_response(both, [5, 10, -5, 7], sums) for _ in range(2)]
  assert sent[0].client != sent[1].client
  received = [question.read(response.to_bytes(), both) for response in sent]
  combined = question.combine(received, both)
  np.testing.assert_allclose(combined.scores, [2, 4, -2, 2.8])
  np.testing.assert_array_equal(combined.sums, 2 * np.array(sums))
  assert combined.votes == 2
  # Three votes and one of weight 5: 3 sqrt(28) on every number of each client.
  assert combined.scale == pytest.approx(3 * 56**0.5)
  assert combined.sigma == pytest.approx(3 * 56**0.5 / 5)


@pytest.mark.parametrize(
  ("scores", "sums", "changes", "match"),
  [
    ([1, 2, 3], np.zeros((2, 4), int), {}, "scores"),
    ([1, 2, 3, 4], np.zeros((1, 4), int), {}, "sums"),
    ([1, 2, 3, 4], np.zeros((2, 5), int), {}, "sums"),
    ([1, 2, 3, 4], np.zeros((2, 4), int), {"bins": 1}, "number of votes"),
    ([1, 2, 3, 4], np.zeros((2, 4), int), {"weight": 0}, "number of votes"),
  ],
)
def test_an_answer_to_other_parts_is_refused(
  both, scores, sums, changes, match
):
  data = _full_response(both, scores, sums, **changes).to_bytes()
  with pytest.raises(messages.ProtocolError, match=match):
    question.read(data, both)

"""Groups of clients, whose true kinds only the tests know."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn import metrics

from ecos_jax import config
from ecos_jax import messages
from ecos_jax.client import coverage
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import groups
from ecos_jax.cloud import question
from ecos_jax.encoders import registry
from ecos_jax.privacy import mechanisms

KEY = jax.random.key(0)
KINDS = 3


def _samples(kind, n, random):
  """Returns samples of three overlapping kinds, float32 [n, 10]."""
  place = 1.5 * np.eye(KINDS, 10)[kind]
  return (place + random.normal(size=(n, 10))).astype(np.float32)


@pytest.fixture(name="cloud", scope="module")
def _cloud():
  random = np.random.default_rng(0)
  pool = np.concatenate([_samples(k, 1000, random) for k in range(KINDS)])
  return pool, codebook_lib.fit(pool, 12, KEY, directions=8)


def _query(book, asked, classes=0):
  return question.make(
    book,
    registry.identity(10),
    messages.Terms(2.0, 0.8, 1e-5, "add_remove"),
    config.Codebook(question=config.Question(asked), votes=4),
    classes,
  )


def _answers(query, mixtures, sizes, sigmas, random):
  """Returns the answers of clients with mixtures [n, KINDS] of the kinds."""
  answers = []
  for mixture, size, sigma in zip(mixtures, sizes, sigmas, strict=True):
    counts = random.multinomial(size, mixture)
    data = [_samples(k, count, random) for k, count in enumerate(counts)]
    terms = dataclasses.replace(query.terms, sigma=sigma)
    seed = int(random.integers(2**62))
    mechanism = mechanisms.Mechanism(terms, seed, query.bins, query.weight)
    labels = [random.integers(3, size=len(part)) for part in data]
    given = {"labels": np.concatenate(labels)} if query.classes else {}
    features = [np.concatenate(data)]
    answers.append(coverage.respond(query, features, mechanism, **given))
  return answers


@pytest.mark.parametrize(
  ("asked", "classes"), [("counts", 0), ("signs", 0), ("both", 0), ("both", 3)]
)
def test_groups_are_the_clients_of_one_kind(cloud, asked, classes):
  pool, book = cloud
  random = np.random.default_rng(1)
  kinds = np.array([2] * 7 + [0] * 5 + [1] * 3)
  random.shuffle(kinds)
  # Each has a tenth of the others; sizes and noise differ by factors.
  mixtures = 0.85 * np.eye(KINDS)[kinds] + 0.05
  sizes = random.choice([150, 300, 900], len(kinds))
  sigmas = random.choice([1.0, 2.0], len(kinds))
  query = _query(book, asked, classes)
  answers = _answers(query, mixtures, sizes, sigmas, random)
  found = groups.find(pool, book, query, answers, KINDS, KEY)
  assert found.most == KINDS
  assert metrics.adjusted_rand_score(kinds, found.members) == 1
  np.testing.assert_array_equal(np.bincount(found.members), [7, 5, 3])
  again = groups.find(pool, book, query, answers, KINDS, KEY)
  np.testing.assert_array_equal(again.members, found.members)
  # More than there are, and one, are one group.
  for other in (1, KINDS + 1):
    found = groups.find(pool, book, query, answers, other, KEY)
    assert not found.members.any()


@pytest.mark.parametrize(
  ("asked", "sigma", "size"),
  # The spread is that of the noise, or of the choice of samples.
  [("both", 5.0, 100), ("both", 0.3, 1000), ("counts", 0.3, 300)],
)
def test_alike_clients_are_rarely_told_apart(cloud, asked, sigma, size):
  pool, book = cloud
  query = _query(book, asked)
  random = np.random.default_rng(2)
  mixtures = np.tile([0.6, 0.3, 0.1], (9, 1))
  sizes = np.array([1, 1, 1, 1, 2, 2, 2, 3, 3]) * size
  apart = 0
  for i in range(25):
    answers = _answers(query, mixtures, sizes, [sigma] * 9, random)
    key = jax.random.fold_in(KEY, i)
    apart += groups.find(pool, book, query, answers, 2, key).most > 1
  # Of 25, one is expected; more than four come by chance in 7 of 1,000.
  assert apart <= 4


def test_samples_of_the_pool_in_no_cluster_do_not_count(cloud):
  pool, _ = cloud
  # The second of two rounds asks about a part of the pool: here one kind.
  book = codebook_lib.fit(pool[:1000], 12, KEY, directions=8)
  assignment = np.full(len(pool), -1, np.int32)
  assignment[:1000] = book.assignment
  book = book._replace(assignment=assignment)
  query = _query(book, "both")
  random = np.random.default_rng(5)
  mixtures = np.tile([0.98, 0.01, 0.01], (9, 1))
  apart = 0
  for i in range(10):
    answers = _answers(query, mixtures, [1000] * 9, [0.3] * 9, random)
    key = jax.random.fold_in(KEY, i)
    apart += groups.find(pool, book, query, answers, 2, key).most > 1
  # More than three of 10 come by chance in 1 of 1,000.
  assert apart <= 3


def test_the_noise_hides_groups(cloud):
  pool, book = cloud
  query = _query(book, "both")
  random = np.random.default_rng(3)
  mixtures = 0.85 * np.eye(KINDS)[np.arange(12) % KINDS] + 0.05
  most = []
  for sigma in (1.0, 100.0):
    answers = _answers(query, mixtures, [200] * 12, [sigma] * 12, random)
    found = groups.find(pool, book, query, answers, KINDS, KEY)
    most.append(found.most)
    assert found.members.any() == (found.most == KINDS)
  assert most == [KINDS, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_few_answers_are_one_group(cloud, count):
  pool, book = cloud
  query = _query(book, "both")
  random = np.random.default_rng(4)
  answers = _answers(
    query, np.eye(3)[:count], [99] * count, [1] * count, random
  )
  found = groups.find(pool, book, query, answers, KINDS, KEY)
  assert found.most <= count
  np.testing.assert_array_equal(found.members, np.zeros(count))

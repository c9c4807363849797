"""The audit's own statistics, the shipped mechanism, and broken ones.

The bounds of the shipped mechanism hold with a confidence of 0.9999: a chance
of at most 1e-4 a run that a true claim is refuted, and in truth far less, since
no event that so few answers resolve comes near the claimed epsilon, which is
about events of probability delta. Broken mechanisms are to be caught, where a
lower confidence is enough; the margins are several standard errors.

Where the bound must come near the claim, delta is large: its epsilon is about
events that fewer answers resolve.
"""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import audit
from ecos_jax.client import coverage
from ecos_jax.privacy import accounting
from ecos_jax.privacy import mechanisms
from tests.client.queries import counts_of

CONFIDENCE = 0.9999
DELTA = 1e-5


LARGE_DELTA = 1e-3


def _mechanism(sigma, gamma=0.8, delta=DELTA, relation="add_remove"):
  return mechanisms.Mechanism(messages.Terms(sigma, gamma, delta, relation))


def _bound(mechanism, trials, relation="add_remove", confidence=CONFIDENCE):
  delta = mechanism.terms.delta
  return audit.audit(mechanism, delta, relation, trials, confidence).bound


class HalfTheNoise(mechanisms.Mechanism):
  def noised(self, coverage):
    terms = dataclasses.replace(self.terms, sigma=self.terms.sigma / 2)
    return mechanisms.Mechanism(terms).noised(coverage)


class ScaleOfOneVote(mechanisms.Mechanism):
  def noised(self, coverage):
    return mechanisms.Mechanism(self.terms).noised(coverage)


class NoSubsample(mechanisms.Mechanism):
  def subsample(self, n):
    return np.ones(n, np.bool_)


class FloatNoise(mechanisms.Mechanism):
  def noised(self, coverage):
    random = np.random.default_rng()
    noise = random.standard_normal(coverage.shape, np.float32)
    return coverage + (np.float32(self.terms.sigma) * noise).astype(np.float64)


class SharedNoise(mechanisms.Mechanism):
  def noised(self, coverage):
    noise = super().noised(np.zeros((len(coverage), 1), np.int64))
    return coverage + noise


class ZeroSumNoise(mechanisms.Mechanism):
  def noised(self, coverage):
    noise = super().noised(np.zeros_like(coverage))
    return coverage + noise - np.roll(noise, 1, axis=1)


class CleanBin0(mechanisms.Mechanism):
  def noised(self, coverage):
    noised = super().noised(coverage)
    noised[:, 0] = coverage[:, 0]
    return noised


class Seeded(mechanisms.Mechanism):
  def noised(self, coverage):
    return mechanisms.Mechanism(self.terms, 7).noised(coverage)


class EverySampleVotes(mechanisms.Mechanism):
  def voters(self, n, persons, repetitions=1):
    drawn = self.subsample(repetitions * len(persons)).reshape(repetitions, -1)
    return drawn[:, persons.ids]


@pytest.mark.parametrize(
  ("broken", "sigma", "gamma", "delta", "trials"),
  [
    (HalfTheNoise, 1.0, 0.8, LARGE_DELTA, 8000),
    (NoSubsample, 1.0, 0.05, DELTA, 8000),
    (FloatNoise, 1.0, 0.8, DELTA, 6000),
    (SharedNoise, 10.0, 0.8, DELTA, 2000),
    (ZeroSumNoise, 10.0, 0.8, DELTA, 2000),
    (CleanBin0, 10.0, 0.8, DELTA, 2000),
    (Seeded, 10.0, 0.8, DELTA, 1_000),
  ],
)
def test_a_broken_mechanism_is_caught(broken, sigma, gamma, delta, trials):
  mechanism = broken(messages.Terms(sigma, gamma, delta, "add_remove"))
  claim = mechanism.statement.epsilon
  assert claim == accounting.epsilon(sigma, gamma, delta, "add_remove")
  assert _bound(mechanism, trials, confidence=0.99) > claim


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_the_shipped_mechanism_is_not_refuted(relation):
  mechanism = _mechanism(1.0, relation=relation)
  bound = _bound(mechanism, 10_000, relation)
  assert 1.0 < bound <= mechanism.statement.epsilon


@pytest.mark.parametrize("bins", [1, 9])
def test_a_person_of_50_samples_is_hidden_and_caught_if_all_vote(bins):
  terms = messages.Terms(1.0, 0.8, DELTA, "add_remove", unit="person")
  shipped = mechanisms.Mechanism(terms, bins=bins)
  claim = shipped.statement.epsilon
  assert 1.0 < _bound(shipped, 10_000) <= claim
  terms = dataclasses.replace(terms, sigma=10.0)
  broken = EverySampleVotes(terms, bins=bins)
  bound = _bound(broken, 4000, confidence=0.99)
  assert bound > 10 * broken.statement.epsilon


@pytest.mark.parametrize("votes", [1, 8])
def test_signed_votes_are_not_refuted(votes):
  mechanism = dataclasses.replace(_mechanism(1.0), bins=votes + 1)
  bound = _bound(mechanism, 10_000)
  assert 1.0 < bound <= mechanism.statement.epsilon


@pytest.mark.parametrize("broken", [NoSubsample, SharedNoise, ScaleOfOneVote])
def test_broken_signed_votes_are_caught(broken):
  gamma = 0.05 if broken is NoSubsample else 0.8
  sigma = 10.0 if broken is SharedNoise else 1.0
  terms = messages.Terms(sigma, gamma, DELTA, "add_remove")
  mechanism = broken(terms, bins=9)
  assert (
    _bound(mechanism, 10_000, confidence=0.99) > mechanism.statement.epsilon
  )


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "trials"), [(1.0, 4000), (10.0, 1000)])
def test_twenty_audits_never_refute_the_shipped_mechanism(sigma, trials):
  mechanism = _mechanism(sigma, delta=LARGE_DELTA)
  bounds = [_bound(mechanism, trials) for _ in range(20)]
  assert max(bounds) <= mechanism.statement.epsilon


@pytest.mark.slow
def test_the_audit_shows_half_of_the_claim():
  mechanism = _mechanism(1.0, delta=LARGE_DELTA)
  bound = _bound(mechanism, 40_000)
  claim = mechanism.statement.epsilon
  assert claim / 2 <= bound <= claim


def test_what_claims_nothing_is_not_audited():
  terms = messages.Terms(1.0, 0.8, DELTA, "add_remove")
  with pytest.raises(errors.EcosError, match="seed"):
    _bound(mechanisms.Mechanism(terms, insecure_noise_seed=1), 100)


def test_little_noise_may_repeat_itself():
  # Nearly always 0, and most of 12 answers equal: still not a defect.
  assert _bound(_mechanism(0.4), 1000) < np.inf


def test_the_command_also_audits_at_a_small_gamma():
  process = subprocess.run(
    [
      sys.executable,
      "-m",
      "ecos_jax.privacy.audit",
      "--sigma=10",
      "--trials=1000",
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  assert "gamma 0.8)" in process.stdout
  assert "gamma 0.05)" in process.stdout


def test_neighbours_differ_in_one_vote():
  for relation, shift, change in (
    ("add_remove", 0, [0, 1, 0]),
    ("add_remove", 2, [1, 0, 0]),
    ("replace_one", 0, [0, 1, -1]),
  ):
    query, without, present = audit.neighbours(relation, shift)
    counts = [counts_of(data, query.centroids) for data in (without, present)]
    assert (counts[1] - counts[0]).tolist() == change


def test_neighbours_differ_in_all_votes_on_directions():
  query, *datasets = audit.neighbours("add_remove", votes=3)
  sums = []
  for data in datasets:
    votes = coverage.cast(query, data)
    _, exact = coverage.exact(votes, query, np.ones((1, len(data)), bool))
    sums.append(exact[0, 0])
  assert (sums[1] - sums[0]).tolist() == [1, -1, 1, 1]


def test_lower_bound_is_clopper_and_pearson_s():
  # By hand: no alarm in n trials has the upper limit 1 - risk^(1/n).
  alarm = 1 - 0.025 ** (1 / 100)
  rate = 0.025 ** (1 / 100)
  bound = audit.lower_bound(100, 0, 100, 0.0, 0.95)
  assert bound == pytest.approx(np.log(rate / alarm))
  assert audit.lower_bound(0, 50, 100, 0.0, 0.95) == -np.inf
  assert audit.lower_bound(50, 100, 100, 0.0, 0.95) < 0


def test_lower_bound_holds_as_often_as_stated():
  # Randomised response of epsilon ln 3, where the bound is nearly tight.
  random = np.random.default_rng(0)
  runs = random.binomial(1000, [0.75, 0.25], (2000, 2))
  wrong = sum(
    audit.lower_bound(int(hits), int(alarms), 1000, 0.0, 0.9) > np.log(3)
    for hits, alarms in runs
  )
  assert wrong <= 0.1 * 2000

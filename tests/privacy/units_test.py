import itertools

import numpy as np
import pytest
from scipy import stats

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.privacy import accounting
from ecos_jax.privacy import mechanisms
from ecos_jax.privacy import units
from tests.privacy import references

RISK = 1e-7
IDS = np.array(["c", "a", "c", "b", "c", "a"])


def _mechanism(sigma=10.0, gamma=0.8, seed=None):
  terms = messages.Terms(sigma, gamma, 1e-5, "add_remove", unit="person")
  return mechanisms.Mechanism(terms, insecure_noise_seed=seed)


@pytest.mark.parametrize("seed", [None, 5])
def test_persons_are_drawn_and_of_each_one_sample_uniformly(seed):
  times = 40_000
  persons = units.Persons(IDS)
  votes = _mechanism(gamma=0.3, seed=seed).voters(6, persons, times)
  assert votes.shape == (times, 6)
  for name, size in (("a", 2), ("b", 1), ("c", 3)):
    own = votes[:, name == IDS]
    assert own.sum(1).max() == 1
    drawn = own.sum(1) > 0
    assert stats.binomtest(int(drawn.sum()), times, 0.3).pvalue > RISK
    assert stats.chisquare(own.sum(0)).pvalue > RISK if size > 1 else True
  # Persons are drawn independently of one another.
  drawn = np.stack([votes[:, name == IDS].any(1) for name in "abc"])
  assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 8 / times**0.5


def test_integers_are_ids_too_and_other_persons_do_not_matter():
  numbers = units.Persons(np.array([7, -2, 7, 0, 7, -2]))
  picked = _mechanism(gamma=1.0, seed=1).voters(6, numbers, 50)
  same = _mechanism(gamma=1.0, seed=1).voters(6, units.Persons(IDS), 50)
  assert len(numbers) == 3
  assert picked.sum() == same.sum() == 150
  nobody = units.Persons(np.zeros(0, np.int64))
  assert _mechanism().voters(0, nobody, 2).shape == (2, 0)


@pytest.mark.parametrize(
  "ids", [np.zeros(3), np.zeros((3, 1), int), np.array([None, "a"])]
)
def test_ids_of_another_type_are_refused(ids):
  with pytest.raises(errors.EcosError, match="`persons`"):
    units.Persons(ids)


@pytest.mark.parametrize(
  "ids", [["a", "nan"], ["", "a"], [b"a", b"None"], [3, -1], ["a", np.nan]]
)
def test_what_stands_for_nobody_is_no_id(ids):
  # Else it would be one more person, who has samples of others.
  with pytest.raises(errors.EcosError, match="every sample whose it is"):
    units.Persons(np.array(ids))
  units.Persons(np.array(["nanny", "Na", "1"]))
  units.Persons(np.array([], "U1"))


def test_the_persons_must_be_those_that_the_terms_speak_of():
  by_sample = mechanisms.Mechanism(messages.Terms(9, 0.8, 1e-5, "add_remove"))
  with pytest.raises(errors.EcosError, match="`unit`"):
    by_sample.voters(6, units.Persons(IDS))
  with pytest.raises(errors.EcosError, match="`unit`"):
    _mechanism().voters(6, None)
  with pytest.raises(errors.EcosError, match="one id for each sample"):
    _mechanism().voters(5, units.Persons(IDS))


def _outputs(votes, ids, sigma, gamma):
  """The distribution of two noisy counts, from the definition: [x, x]."""
  x = np.arange(-int(12 * sigma) - 9, int(12 * sigma) + 10)
  p0 = np.exp(-(x**2) / (2 * sigma**2))
  p0 /= p0.sum()
  total = np.zeros((len(x), len(x)))
  persons = [votes[ids == name] for name in np.unique(ids)]
  # Each person: absent, or one of the samples, each equally likely.
  outcomes = [
    [(1 - gamma, None), *((gamma / len(own), vote) for vote in own)]
    for own in persons
  ]
  for drawn in itertools.product(*outcomes):
    counts = [sum(vote == k for _, vote in drawn) for k in (0, 1)]
    weight = np.prod([probability for probability, _ in drawn])
    total += weight * np.outer(*(np.roll(p0, count) for count in counts))
  return total


@pytest.mark.parametrize("sigma", [0.6, 2.0])
def test_a_person_costs_what_a_sample_does_by_brute_force(sigma):
  """Over all data of up to 3 persons with up to 4 samples each, in two bins."""
  gamma, random = 0.7, np.random.default_rng(0)
  worst = dict.fromkeys((0.1, 0.5, 1.5), 0.0)
  for case in range(12):
    sizes = random.integers(1, 5, 3)
    ids = np.repeat([0, 1, 2], sizes)
    # In the first case the person votes in one bin alone.
    votes = (
      np.zeros(len(ids), int) if not case else random.integers(0, 2, len(ids))
    )
    with_one = _outputs(votes, ids, sigma, gamma)
    without = _outputs(votes[ids < 2], ids[ids < 2], sigma, gamma)
    for at in worst:
      grow = np.exp(at)
      for p, q in ((with_one, without), (without, with_one)):
        found = np.maximum(p - grow * q, 0).sum()
        worst[at] = max(worst[at], found)
        # Never more than for one sample.
        bound = references.delta(sigma, gamma, at, "add_remove")
        assert found <= bound * (1 + 1e-9)
  assert min(worst.values()) > 0


def test_the_statement_says_the_unit_and_the_price_of_a_sample():
  statement = _mechanism(7.0, 0.3).statement
  assert statement.unit == "person"
  assert statement.epsilon == accounting.epsilon(7.0, 0.3, 1e-5, "add_remove")

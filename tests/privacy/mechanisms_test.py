import numpy as np
import pytest
from scipy import stats

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.privacy import accounting
from ecos_jax.privacy import mechanisms

# Chance of a false alarm of each statistical test.
RISK = 1e-7


def _mechanism(sigma=10.0, gamma=0.8, relation="add_remove", seed=None):
  terms = messages.Terms(sigma, gamma, 1e-5, relation)
  return mechanisms.Mechanism(terms, insecure_noise_seed=seed)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("sigma", [0.5, 1.3, 9.0])
def test_noise_has_the_probabilities_of_the_discrete_gaussian(sigma, seed):
  noise = _mechanism(sigma, seed=seed).noised(np.zeros(30_000, np.int64))
  x = np.arange(-200, 201)
  mass = np.exp(-(x**2) / (2 * sigma**2))
  expected = len(noise) * mass / mass.sum()
  observed = np.array([np.count_nonzero(noise == k) for k in x])
  assert observed.sum() == len(noise)
  common = expected > 5
  tail = expected[~common].sum() + 1e-9
  observed = np.append(observed[common], observed[~common].sum())
  expected = np.append(expected[common], tail)
  statistic = ((observed - expected) ** 2 / expected)[:-1].sum()
  assert stats.chi2.sf(statistic, common.sum() - 1) > RISK


@pytest.mark.parametrize("sigma", [0.25, 0.1 + 0.2, 5.92578125, 16384.0])
def test_opendp_takes_the_sigma_that_is_accounted_for(sigma):
  # The bound that OpenDP itself proves, rho = 1 / (2 sigma^2), holds for the
  # scale that it draws with.
  measurement = mechanisms._gaussian(sigma)
  assert measurement.map(1.0) == pytest.approx(1 / (2 * sigma**2), rel=1e-12)


def test_noise_keeps_the_shape_and_is_independent_on_each_count():
  counts = np.arange(60_000).reshape(20_000, 3)
  noised = _mechanism(4.0).noised(counts)
  assert noised.dtype == np.int64
  assert noised.shape == counts.shape
  correlation = np.corrcoef((noised - counts).T)
  assert np.abs(correlation - np.eye(3)).max() < 6 / 20_000**0.5


def test_many_counts_take_noise_at_once():
  noised = _mechanism(70.0).noised(np.full(100_000, 2**40))
  assert np.abs(noised - 2**40).max() < 12 * 70


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("gamma", [2.0**-12, 0.2, 0.8])
def test_subsample_takes_each_sample_with_probability_gamma(gamma, seed):
  # More than one draw of entropy, and not a multiple.
  n = 2**21 + 17
  taken = _mechanism(gamma=gamma, seed=seed).subsample(n)
  assert taken.shape == (n,)
  assert stats.binomtest(int(taken.sum()), n, gamma).pvalue > RISK
  pairs = int((taken[1:] & taken[:-1]).sum())
  assert abs(pairs - n * gamma**2) < 8 * (n * gamma**2) ** 0.5 + 8


def test_gamma_one_takes_all_and_nothing_has_no_samples():
  assert _mechanism(gamma=1.0).subsample(1000).all()
  assert _mechanism().subsample(0).shape == (0,)


def test_a_subsample_compares_all_64_bits(monkeypatch):
  limit = int(0.8 * 2**64)
  numbers = np.array([0, limit - 1, limit, 2**64 - 1], np.uint64)
  monkeypatch.setattr(
    mechanisms.secrets, "token_bytes", lambda size: numbers.tobytes()[:size]
  )
  taken = _mechanism(gamma=0.8).subsample(4)
  assert taken.tolist() == [True, True, False, False]


def test_draws_differ_from_call_to_call():
  mechanism = _mechanism()
  counts = np.zeros(100, np.int64)
  assert (mechanism.noised(counts) != mechanism.noised(counts)).any()
  assert (mechanism.subsample(500) != mechanism.subsample(500)).any()


def test_a_seed_repeats_the_draws_and_the_statement_says_so():
  counts = np.zeros(100, np.int64)
  first, again = _mechanism(seed=7), _mechanism(seed=7)
  np.testing.assert_array_equal(first.noised(counts), again.noised(counts))
  np.testing.assert_array_equal(first.subsample(99), again.subsample(99))
  assert (first.noised(counts) != _mechanism(seed=8).noised(counts)).any()
  assert not first.statement.private
  assert _mechanism().statement.private


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_the_statement_is_what_the_accounting_says(relation):
  statement = _mechanism(7.0, 0.3, relation).statement
  epsilon = accounting.epsilon(7.0, 0.3, 1e-5, relation)
  assert statement == messages.Statement(
    7.0, 0.3, 1e-5, relation, epsilon, True
  )


def test_a_mechanism_of_an_epsilon_keeps_it():
  terms = (0.8, 1e-5, "add_remove")
  mechanism = mechanisms.Mechanism.of(0.5, None, *terms)
  assert 0.49 < mechanism.statement.epsilon <= 0.5
  seeded = mechanisms.Mechanism.of(None, 10.0, *terms, insecure_noise_seed=2)
  assert seeded == _mechanism(10.0, 0.8, "add_remove", seed=2)
  with pytest.raises(errors.EcosError, match="gamma"):
    mechanisms.Mechanism.of(0.5, None, 2.0, 1e-5, "add_remove")
  for both in ((None, None), (0.5, 10.0)):
    with pytest.raises(errors.EcosError, match="`epsilon` or `sigma`"):
      mechanisms.Mechanism.of(*both, *terms)

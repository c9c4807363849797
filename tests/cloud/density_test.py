import jax
import numpy as np
import pytest
from scipy import optimize
from scipy import sparse

from ecos_jax.cloud import density as density_lib
from ecos_jax.cloud import directions
from ecos_jax.cloud import worth
from tests.cloud import banks

KEY = jax.random.key(3)


def _sums(votes, taken, noise=None):
  sums = np.append(votes[taken].sum(axis=0), len(taken))
  return sums if noise is None else sums + noise


def test_without_noise_the_density_has_the_clients_mean_votes():
  features = banks.turned()
  found = directions.fit(features, 6, KEY)
  votes = np.asarray(directions.votes(features, *found, 3))
  random = np.random.default_rng(1)
  tilt = np.array([0.8, -0.5, 0.3, 0, 0, 0.2])
  odds = np.exp(votes @ tilt)
  taken = random.choice(len(votes), 100_000, p=odds / odds.sum())
  got = density_lib.fit(features, found, 3, _sums(votes, taken), 1e-3, KEY)
  np.testing.assert_allclose(got.tilt, tilt, atol=0.03)
  logs = got.log_at(features)
  # A density over the pool, under which the votes have the client's means.
  assert np.exp(logs).mean() == pytest.approx(1, abs=1e-5)
  means = np.exp(logs) @ votes / len(votes)
  np.testing.assert_allclose(means, votes[taken].mean(axis=0), atol=1e-3)


def test_the_tilt_is_the_largest_of_its_formula():
  random = np.random.default_rng(2)
  rows = random.integers(-1, 2, (400, 5)).astype(np.float64)
  mean = rows[:40].mean(axis=0) + 0.1
  labels = random.integers(-1, 3, 400)
  inside = (labels == np.arange(3)[:, None]).astype(np.float64)
  target, ridges = np.array([0.4, 0.1, 0.2]), np.array([0.02, 0.3, 1.0])
  for ridge, clusters in ((0.01, 0), (1.0, 0), (30.0, 0), (0.05, 3)):
    columns = np.concatenate([rows, inside[:clusters].T], axis=1)
    aim = np.append(mean, target[:clusters])
    damping = np.append(np.full(5, ridge), ridges[:clusters])

    def loss(point, columns=columns, aim=aim, damping=damping):
      powers = np.exp(columns @ point).mean()
      return np.log(powers) - point @ aim + damping @ point**2 / 2

    expected = optimize.minimize(loss, np.zeros(len(aim)), tol=1e-12).x
    given = (sparse.csr_array(inside), target, ridges) if clusters else ()
    got = density_lib._maximum_entropy(rows, mean, ridge, *given)
    np.testing.assert_allclose(got[0], expected[:5], atol=1e-5)
    scale = np.log(np.exp(columns @ expected).mean())
    assert got[1] == pytest.approx(scale, abs=1e-5)
    if clusters:
      np.testing.assert_allclose(got[2], expected[5:], atol=1e-5)
    else:
      assert got[2] is None


def test_counts_tell_what_no_direction_does():
  features = banks.turned(4000)
  found = directions.fit(features, 6, KEY)
  votes = np.asarray(directions.votes(features, *found, 3))
  random = np.random.default_rng(5)
  assignment = random.integers(-1, 8, 4000).astype(np.int32)
  sizes = np.bincount(assignment[assignment >= 0], minlength=8)
  # The client has samples in two clusters that no direction separates.
  taken = random.choice(
    np.flatnonzero((assignment >= 0) & (assignment < 2)), 900
  )
  scores = np.bincount(assignment[taken], minlength=8)
  sums = _sums(votes, taken)
  counts = density_lib.Counts(scores, 1.0, assignment, sizes)
  got = density_lib.fit(features, found, 3, sums, 1.0, KEY, counts)
  held = got.in_clusters(features, assignment, 8)
  np.testing.assert_allclose(held / 4000, scores / 900, atol=0.02)
  # Counts that drown in noise change nothing.
  lost = density_lib.Counts(scores, 1e6, assignment, sizes)
  got = density_lib.fit(features, found, 3, sums, 1.0, KEY, lost)
  alone = density_lib.fit(features, found, 3, sums, 1.0, KEY)
  np.testing.assert_allclose(got.levels, 0, atol=1e-3)
  np.testing.assert_allclose(got.tilt, alone.tilt, atol=1e-3)


def test_noise_alone_tilts_nothing():
  features = banks.turned()
  found = directions.fit(features, 12, KEY)
  votes = np.asarray(directions.votes(features, *found, 6))
  random = np.random.default_rng(3)
  taken = random.integers(len(votes), size=300)
  for scale in (30.0, 3000.0):
    noise = random.normal(0, scale, 13).round()
    sums = _sums(votes, taken, noise)
    got = density_lib.fit(features, found, 6, sums, scale, KEY)
    assert got.log_at(features).std() < 0.3


def test_densities_are_added_up_in_clusters():
  features = banks.turned(700)
  found = directions.fit(features, 4, KEY)
  density = density_lib.Density(
    found,
    2,
    np.array([1.0, -1.0, 0.5, 0.0]),
    0.3,
    worth.Means(*np.zeros((3, 4))),
  )
  assignment = np.random.default_rng(4).integers(-1, 5, 700).astype(np.int32)
  got = density.in_clusters(banks.Rows(features), assignment, 5)
  each = np.exp(density.log_at(features))
  expected = [each[assignment == r].sum() for r in range(5)]
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  # Far votes and a low level make a usual density, however large each is.
  far = density._replace(offset=0.3 - 900, levels=np.full(5, -900.0))
  got = far.in_clusters(banks.Rows(features), assignment, 5)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("voters", [3000, 30_000, 10**12])
@pytest.mark.parametrize("with_counts", [False, True])
def test_a_client_unlike_all_of_the_pool_gets_more_than_a_few_samples(
  voters, with_counts
):
  features = banks.turned(4000)
  found = directions.fit(features, 6, KEY)
  votes = np.asarray(directions.votes(features, *found, 3))
  # No sample has these votes: a sample votes on 3 directions.
  sums = np.append(np.full(6, 0.9 * voters), voters).astype(np.int64)
  counts = None
  if with_counts:
    assignment = np.arange(4000, dtype=np.int32) % 4
    scores = np.array([voters, 0, 0, 0])
    counts = density_lib.Counts(scores, 5.0, assignment, np.full(4, 1000))
  got = density_lib.fit(features, found, 3, sums, 60.0, KEY, counts)
  logs = got.log_at(features)
  if counts is not None:
    logs += got.levels[counts.assignment]
  weights = np.exp(logs - logs.max())
  assert weights.sum() ** 2 / (weights**2).sum() >= 12
  # It still looks like the client as far as the pool can.
  assert (weights @ votes / weights.sum()).mean() > votes.mean() + 0.2


def test_what_newtons_method_does_not_find_is_drawn_to_zero_until_it_does():
  """Where no density has the shares of clusters that are asked for."""
  features = banks.turned(4000)
  found = directions.fit(features, 6, KEY)
  votes = np.asarray(directions.votes(features, *found, 3), np.float64)
  random = np.random.default_rng(0)
  assignment = random.integers(0, 50, 4000).astype(np.int32)
  sizes = np.bincount(assignment, minlength=50)
  shares = random.normal(0, 1, 50)
  counts = density_lib.Counts(1e9 * shares, 1e3, assignment, sizes)
  sums = 1e9 * np.append(votes.mean(axis=0), 1)
  got = density_lib.fit(features, found, 3, sums, 1e3, KEY, counts)
  logs = votes @ got.tilt + got.levels[assignment]
  weights = np.exp(logs - logs.max())
  weights /= weights.sum()
  # At the maximum, what is left of each mean is its rho times its number.
  inside = (assignment == np.arange(50)[:, None]).astype(np.float64)
  left = shares - inside @ weights
  rho = left / got.levels
  np.testing.assert_allclose(rho, np.median(rho), rtol=0.01)
  left = votes.mean(axis=0) - weights @ votes
  rho = left @ got.tilt / (got.tilt @ got.tilt)
  assert rho > 0
  np.testing.assert_allclose(left, rho * got.tilt, atol=1e-3)


def test_no_forged_answer_breaks_the_density():
  features = banks.turned(500)
  found = directions.fit(features, 6, KEY)
  random = np.random.default_rng(7)
  for voters in (0, 1, 2**40):
    sums = np.append(random.integers(-(2**40), 2**40, 6), voters)
    got = density_lib.fit(features, found, 3, sums, 20.0, KEY)
    assert np.isfinite(got.tilt).all() and np.isfinite(got.offset)


def test_where_only_the_pool_s_density_is_left_it_is_returned():
  """Newton's method gains too little to begin, and the gradient stays."""
  tilt, offset, levels = density_lib._on_many_samples(
    np.array([[1.0], [-1.0]]), np.array([0.005]), 1e5, None, None, None
  )
  assert tilt == [0] and offset == 0 and levels is None

import jax
import numpy as np
import pytest
from scipy import optimize
from scipy import sparse
from sklearn import decomposition

from ecos_jax import errors
from ecos_jax.client import coverage
from ecos_jax.cloud import directions
from tests.cloud import banks

KEY = jax.random.key(3)


def _pool(n=3000, d=12, offset=0.0, seed=0):
  """Returns features with components of very different variance."""
  random = np.random.default_rng(seed)
  mixed = random.normal(size=(n, d)) * np.geomspace(3, 0.2, d)
  turn = np.linalg.qr(random.normal(size=(d, d)))[0]
  return (mixed @ turn + offset).astype(np.float32)


def _coordinates(found, features):
  axes, mean = (part.astype(np.float64) for part in found)
  return (features - mean) @ axes.T


# Around 10^4, float32 has steps of 0.001.
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_directions_are_whitened_principal_components(offset):
  features = _pool(offset=offset)
  found = directions.fit(features, 6, KEY)
  exact = features.astype(np.float64)
  np.testing.assert_allclose(
    found.mean, exact.mean(axis=0), rtol=1e-6, atol=1e-6
  )
  z = _coordinates(found, features)
  pca = decomposition.PCA(6, whiten=True, svd_solver="full").fit(exact)
  expected = pca.transform(exact)
  cosines = np.corrcoef(z.T, expected.T)[:6, 6:]
  np.testing.assert_allclose(np.abs(np.diagonal(cosines)), 1, atol=1e-4)
  np.testing.assert_allclose(z.std(axis=0) / z.std(), 1, rtol=3e-3)
  # What is sent takes two bytes a number.
  np.testing.assert_array_equal(found.axes, found.axes.astype(np.float16))
  largest = np.abs(found.axes).argmax(axis=1)
  assert np.all(found.axes[np.arange(6), largest] > 0)


def test_many_dimensions_are_approximated(monkeypatch):
  features = _pool(d=60)
  exact = directions.fit(features, 8, KEY)
  monkeypatch.setattr(directions, "_EXACT", 10)
  found = directions.fit(features, 8, KEY)

  def variance(fitted):
    span = np.linalg.qr(fitted.axes.astype(np.float64).T)[0]
    return ((features - features.mean(axis=0)) @ span).var(axis=0).sum()

  assert variance(found) > 0.995 * variance(exact)
  z = _coordinates(found, features)
  np.testing.assert_allclose(np.cov(z.T) / z.var(), np.eye(8), atol=0.01)


def test_a_bank_in_blocks_and_devices_give_the_same(monkeypatch):
  features = _pool(5000)
  whole = directions.fit(features, 5, KEY)
  monkeypatch.setattr(directions.chunks, "_CPU_CHUNK_BYTES", 1 << 15)
  in_parts = directions.fit(banks.Rows(features), 5, KEY)
  np.testing.assert_allclose(in_parts.axes, whole.axes, atol=2e-3)
  np.testing.assert_allclose(in_parts.mean, whole.mean, atol=1e-6)
  again = directions.fit(banks.Rows(features), 5, KEY)
  np.testing.assert_array_equal(again.axes, in_parts.axes)


def test_what_has_no_directions_is_refused():
  with pytest.raises(errors.EcosError, match=r"between 1 and .* 12, got 13"):
    directions.fit(_pool(50), 13, KEY)
  with pytest.raises(errors.EcosError, match="all the same"):
    directions.fit(np.ones((9, 3), np.float32), 2, KEY)
  bad = _pool(50)
  bad[7, 3] = np.nan
  with pytest.raises(errors.EcosError, match="NaN"):
    directions.fit(bad, 2, KEY)


def test_components_that_are_only_rounding_do_not_explode():
  flat = np.zeros((200, 5), np.float32)
  flat[:, :2] = _pool(200, 2)
  axes, _ = directions.fit(flat, 5, KEY)
  assert np.isfinite(axes).all()


@pytest.mark.parametrize("count", [1, 4, 8])
def test_the_pool_votes_as_the_client_does(count):
  features = _pool(500, offset=2.0)
  found = directions.fit(features, 8, KEY)
  ours = np.asarray(directions.votes(features, *found, count))
  theirs = coverage.signs(features, *found, count)
  # They may differ where coordinates are equal to rounding.
  assert np.mean((ours != theirs).any(axis=1)) < 0.01


def _sums(votes, taken, noise=None):
  sums = np.append(votes[taken].sum(axis=0), len(taken))
  return sums if noise is None else sums + noise


def test_without_noise_the_density_has_the_clients_mean_votes():
  features = _pool()
  found = directions.fit(features, 6, KEY)
  votes = np.asarray(directions.votes(features, *found, 3))
  random = np.random.default_rng(1)
  tilt = np.array([0.8, -0.5, 0.3, 0, 0, 0.2])
  odds = np.exp(votes @ tilt)
  taken = random.choice(len(votes), 100_000, p=odds / odds.sum())
  got = directions.density(features, found, 3, _sums(votes, taken), 1e-3, KEY)
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
    got = directions._maximum_entropy(rows, mean, ridge, *given)
    np.testing.assert_allclose(got[0], expected[:5], atol=1e-5)
    scale = np.log(np.exp(columns @ expected).mean())
    assert got[1] == pytest.approx(scale, abs=1e-5)
    if clusters:
      np.testing.assert_allclose(got[2], expected[5:], atol=1e-5)
    else:
      assert got[2] is None


def test_counts_tell_what_no_direction_does():
  features = _pool(4000)
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
  counts = directions.Counts(scores, 1.0, assignment, sizes)
  got = directions.density(features, found, 3, sums, 1.0, KEY, counts)
  held = got.in_clusters(features, assignment, 8)
  np.testing.assert_allclose(held / 4000, scores / 900, atol=0.02)
  # Counts that drown in noise change nothing.
  lost = directions.Counts(scores, 1e6, assignment, sizes)
  got = directions.density(features, found, 3, sums, 1.0, KEY, lost)
  alone = directions.density(features, found, 3, sums, 1.0, KEY)
  np.testing.assert_allclose(got.levels, 0, atol=1e-3)
  np.testing.assert_allclose(got.tilt, alone.tilt, atol=1e-3)


def test_noise_alone_tilts_nothing():
  features = _pool()
  found = directions.fit(features, 12, KEY)
  votes = np.asarray(directions.votes(features, *found, 6))
  random = np.random.default_rng(3)
  taken = random.integers(len(votes), size=300)
  for scale in (30.0, 3000.0):
    noise = random.normal(0, scale, 13).round()
    sums = _sums(votes, taken, noise)
    got = directions.density(features, found, 6, sums, scale, KEY)
    assert got.log_at(features).std() < 0.3


def test_densities_are_added_up_in_clusters():
  features = _pool(700)
  found = directions.fit(features, 4, KEY)
  density = directions.Density(found, 2, np.array([1.0, -1.0, 0.5, 0.0]), 0.3)
  assignment = np.random.default_rng(4).integers(-1, 5, 700).astype(np.int32)
  got = density.in_clusters(banks.Rows(features), assignment, 5)
  each = np.exp(density.log_at(features))
  expected = [each[assignment == r].sum() for r in range(5)]
  np.testing.assert_allclose(got, expected, rtol=1e-5)

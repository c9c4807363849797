import jax
import numpy as np
import pytest
from sklearn import decomposition

from ecos_jax import errors
from ecos_jax.client import coverage
from ecos_jax.cloud import directions
from tests.cloud import banks

KEY = jax.random.key(3)


def _coordinates(found, features):
  axes, mean = (part.astype(np.float64) for part in found)
  return (features - mean) @ axes.T


# Around 10^4, float32 has steps of 0.001.
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_directions_are_whitened_principal_components(offset):
  features = banks.turned(offset=offset)
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
  features = banks.turned(d=60)
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
  features = banks.turned(5000)
  whole = directions.fit(features, 5, KEY)
  monkeypatch.setattr(directions.chunks, "_CPU_CHUNK_BYTES", 1 << 15)
  in_parts = directions.fit(banks.Rows(features), 5, KEY)
  np.testing.assert_allclose(in_parts.axes, whole.axes, atol=2e-3)
  np.testing.assert_allclose(in_parts.mean, whole.mean, atol=1e-6)
  again = directions.fit(banks.Rows(features), 5, KEY)
  np.testing.assert_array_equal(again.axes, in_parts.axes)


def test_what_has_no_directions_is_refused():
  with pytest.raises(errors.EcosError, match=r"between 1 and .* 12, got 13"):
    directions.fit(banks.turned(50), 13, KEY)
  with pytest.raises(errors.EcosError, match="all the same"):
    directions.fit(np.ones((9, 3), np.float32), 2, KEY)
  bad = banks.turned(50)
  bad[7, 3] = np.nan
  with pytest.raises(errors.EcosError, match="NaN"):
    directions.fit(bad, 2, KEY)


def test_components_that_are_only_rounding_do_not_explode():
  flat = np.zeros((200, 5), np.float32)
  flat[:, :2] = banks.turned(200, 2)
  axes, _ = directions.fit(flat, 5, KEY)
  assert np.isfinite(axes).all()


@pytest.mark.parametrize("count", [1, 4, 8])
def test_the_pool_votes_as_the_client_does(count):
  features = banks.turned(500, offset=2.0)
  found = directions.fit(features, 8, KEY)
  ours = np.asarray(directions.votes(features, *found, count))
  theirs = coverage.signs(features, *found, count)
  # They may differ where coordinates are equal to rounding.
  assert np.mean((ours != theirs).any(axis=1)) < 0.01

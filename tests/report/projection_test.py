import numpy as np
import pytest

from ecos_jax.report import projection


@pytest.mark.parametrize("shape", [(200, 7), (20, 300)])
def test_the_plane_is_that_of_a_singular_value_decomposition(shape):
  rng = np.random.default_rng(0)
  features = rng.normal(size=shape) * np.linspace(3, 1, shape[1]) + 5
  mean, directions, share = projection.plane(features)
  _, values, rows = np.linalg.svd(features - features.mean(0))
  np.testing.assert_allclose(mean, features.mean(0))
  np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-9)
  np.testing.assert_allclose(
    np.abs(np.sum(directions * rows[:2], axis=1)), 1, rtol=1e-9
  )
  assert share == pytest.approx(np.sum(values[:2] ** 2) / np.sum(values**2))
  assert (directions.max(1) >= -directions.min(1)).all()


@pytest.mark.parametrize(
  ("features", "rank"),
  [
    (np.ones((5, 4)), 0),
    (np.ones((1, 1)), 0),
    (np.arange(6.0)[:, None], 1),
    (np.outer(np.arange(6.0), [1, 2, 3]), 1),
  ],
)
def test_directions_without_variance_are_zero(features, rank):
  _, directions, share = projection.plane(features)
  assert np.linalg.matrix_rank(directions, tol=1e-6) == rank
  assert share == pytest.approx(float(rank > 0))


def test_a_sample_of_a_huge_pool_costs_no_more():
  rng = np.random.default_rng(0)
  rows = projection.sample(rng, 10**15, 1000)
  assert len(set(rows.tolist())) == 1000
  assert (np.diff(rows) > 0).all()
  assert abs(rows.mean() / 10**15 - 0.5) < 0.05
  np.testing.assert_array_equal(projection.sample(rng, 7, 1000), np.arange(7))

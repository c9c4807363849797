import sys

import numpy as np
import pytest

from ecos_jax import errors
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


def _groups():
  rng = np.random.default_rng(0)
  return np.concatenate([rng.normal(c, 1, (40, 9)) for c in (0, 20)])


@pytest.mark.slow
def test_umap_tells_groups_apart_the_same_way_each_time():
  features = _groups()
  places, onto = projection._umap(features)
  again, onto_again = projection._umap(features)
  np.testing.assert_array_equal(places, again)
  others = features + 0.1
  np.testing.assert_array_equal(onto(others), onto_again(others))
  for found in (places, onto(others)):
    near = [np.linalg.norm(found - places[i], axis=1) for i in (0, 79)]
    np.testing.assert_array_equal(near[0] < near[1], np.arange(80) < 40)
  assert onto(features[:0]).shape == (0, 2)


def test_umap_is_an_extra_and_for_more_than_a_few(monkeypatch):
  monkeypatch.setitem(sys.modules, "umap", None)
  with pytest.raises(errors.EcosError, match=r"pip install 'ecos_jax\[umap\]'"):
    projection._umap(_groups())
  with pytest.raises(errors.EcosError, match="take `projection`=pca"):
    projection._umap(_groups()[:15])


def test_a_sample_of_a_huge_pool_costs_no_more():
  rng = np.random.default_rng(0)
  rows = projection.sample(rng, 10**15, 1000)
  assert len(set(rows.tolist())) == 1000
  assert (np.diff(rows) > 0).all()
  assert abs(rows.mean() / 10**15 - 0.5) < 0.05
  np.testing.assert_array_equal(projection.sample(rng, 7, 1000), np.arange(7))

import numpy as np
import pytest
from sklearn import cluster

from ecos_jax.benchmark import cases
from ecos_jax.benchmark import ours

_OPTIONS = cases.Options(1, 1 << 20, "hog")


@pytest.fixture
def folder(tmp_path):
  """A folder with 200 rows about four points, and one row of each."""
  rng = np.random.default_rng(0)
  centres = rng.normal(0, 9, (4, 8))
  features = np.tile(centres, (50, 1)) + rng.normal(size=(200, 8))
  np.save(tmp_path / "features.npy", features.astype(np.float32))
  np.save(tmp_path / "centroids.npy", features[:4].astype(np.float32))
  return tmp_path


def test_all_labels_are_right(folder):
  case = cases.parse("assign", "200x8x4")
  found = ours.call("ecos_jax", case, _OPTIONS, folder)()
  assert found["correct"] == 1 and found["seconds"] > 0


def test_a_fit_ends_where_that_of_scikit_learn_does(folder):
  case = cases.parse("fit", "200x8x4")
  found = ours.call("ecos_jax", case, _OPTIONS, folder)()
  features, start = (
    np.load(folder / f"{name}.npy") for name in ("features", "centroids")
  )
  _, iterations = case.iterations
  fitted = cluster.KMeans(4, init=start, n_init=1, max_iter=iterations, tol=0)
  inertia = fitted.fit(features).inertia_
  assert found["inertia_per_row"] == pytest.approx(inertia / 200, rel=1e-4)


def test_the_limit_is_scaled_to_the_rows_that_it_left_out(folder):
  case = cases.parse("assign", "200x8x4")
  found = ours.call("gemm", case, _OPTIONS, folder)()
  assert 0 < found["block"] <= 200

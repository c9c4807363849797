import json

import numpy as np
import pytest
from sklearn import cluster

from ecos_jax.benchmark import data


def test_the_inertia_to_reach_is_that_of_scikit_learn(tmp_path):
  case = ("converge", (400, 4, 5), "blobs")
  data.prepare({"case": case, "folder": str(tmp_path)})
  features = np.load(tmp_path / "features.npy")
  reference = json.loads((tmp_path / "reference.json").read_text())
  assert features.shape == (400, 4) and features.dtype == np.float32
  fitted = cluster.KMeans(5, n_init=1, random_state=1, tol=1e-4).fit(features)
  assert reference["lloyd"] == pytest.approx(1.001 * fitted.inertia_, rel=1e-4)
  assert 1 <= reference["iterations"] <= fitted.n_iter_
  # The centroids to assign to and to begin from are distinct rows.
  centroids = np.load(tmp_path / "centroids.npy")
  rows = {tuple(row) for row in features.tolist()}
  assert len({tuple(row) for row in centroids.tolist()} & rows) == 5

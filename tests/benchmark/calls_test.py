import numpy as np
import pytest

from ecos_jax.benchmark import calls


def test_the_first_effort_that_suffices_is_the_one_that_is_timed():
  features = np.float32([[0.0], [1.0], [10.0], [11.0]])
  solutions = {1: [[0.0]], 2: [[5.0]], 3: [[0.5], [10.5]], 4: [[0], [1]]}
  tried = []

  def cluster(effort):
    tried.append(effort)
    return np.float32(solutions[effort])

  call = calls.converging(cluster, (1, 2, 3, 4), features, 1.0, 60.0)
  call()
  result = call()
  assert tried == [1, 2, 3, 3]
  assert result["reached"]
  assert result["inertia"] == pytest.approx(1)
  missed = calls.converging(cluster, (1, 2), features, 1.0, 60.0)()
  assert not missed["reached"]


def test_labels_are_checked_in_double_precision():
  features = np.float32([[0.0], [9.0]])
  centroids = np.float32([[1.0], [8.0]])
  call = calls.assigning(lambda: np.array([0, 0]), features, centroids)
  assert call()["correct"] == 0.5


def test_inertia_against_all_distances():
  rng = np.random.default_rng(1)
  features = rng.standard_normal((10_000, 5), np.float32)
  centroids = rng.standard_normal((7, 5), np.float32)
  distances = ((features[:, None] - centroids) ** 2).sum(2).min(1)
  found = calls.inertia(features, centroids)
  assert found == pytest.approx(distances.sum(dtype=np.float64), rel=1e-5)

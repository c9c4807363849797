import numpy as np
from scipy.spatial import distance

from ecos_jax.benchmark import peers


def test_labels_are_those_of_the_nearest_centroid():
  rng = np.random.default_rng(0)
  features = rng.standard_normal((300, 4), np.float32)
  centroids = rng.standard_normal((7, 4), np.float32)
  labels = peers.ScikitLearn().assign(features, centroids)()
  expected = distance.cdist(features, centroids).argmin(axis=1)
  np.testing.assert_array_equal(labels, expected)


def test_the_inertia_before_each_iteration_falls_to_that_of_the_result():
  features = np.random.default_rng(0).standard_normal((300, 4), np.float32)
  centroids, trace = peers.ScikitLearn().traced(features, 7)
  squared = distance.cdist(features, centroids, "sqeuclidean")
  assert trace == sorted(trace, reverse=True)
  np.testing.assert_allclose(trace[-1], squared.min(axis=1).sum(), rtol=1e-3)

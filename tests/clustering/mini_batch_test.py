import jax
import numpy as np
import pytest
from sklearn import cluster
from sklearn import datasets

from ecos_jax import errors
from ecos_jax.clustering import mini_batch

KEY = jax.random.key(0)


def blobs(n=20_000, d=6, k=15, spread=2.0):
  features, _ = datasets.make_blobs(
    n, d, centers=k, cluster_std=spread, random_state=0
  )
  return features.astype(np.float32)


@pytest.mark.parametrize("offset", [0, 1e5])
def test_moves_are_those_of_a_loop_over_batches(offset):
  features = blobs(1000) + np.float32(offset)
  init = features[:7]
  got = mini_batch.fit(features, 7, KEY, init=init, batch=256)
  centroids = init.astype(np.float64)
  seen = np.zeros(7)
  for first in range(0, 1000, 256):
    part = features[first : first + 256]
    gaps = part[:, None] - centroids
    labels = np.argmin(np.sum(gaps**2, axis=2), axis=1)
    # One row after the other, at the rate 1 / (rows seen by its centroid).
    for row, label in zip(part, labels, strict=True):
      seen[label] += 1
      centroids[label] += (row - centroids[label]) / seen[label]
  np.testing.assert_allclose(got.centroids, centroids, rtol=1e-4, atol=1e-4)
  gaps = np.sum((features[:, None] - centroids) ** 2, axis=2)
  np.testing.assert_array_equal(
    got.sizes, np.bincount(gaps.argmin(axis=1), minlength=7)
  )
  assert got.inertia[-1] == pytest.approx(gaps.min(axis=1).sum(), rel=1e-4)
  assert got.iterations == 4


def test_one_pass_comes_near_full_iterations():
  features = blobs()
  got = mini_batch.fit(features, 30, KEY, batch=1024)
  full = cluster.KMeans(30, n_init=1, random_state=0).fit(features)
  assert got.inertia[-1] < 1.05 * full.inertia_
  assert got.sizes.sum() == len(features)


def test_refuses_what_cannot_be_clustered():
  with pytest.raises(errors.EcosError, match="between 1 and"):
    mini_batch.fit(blobs(10), 11, KEY)
  features = blobs(500)
  features[3, 3] = np.inf
  with pytest.raises(errors.EcosError, match="NaN or infinite"):
    mini_batch.fit(features, 4, KEY, init=features[10:14])

import jax
import numpy as np
import pytest
from sklearn import cluster
from sklearn import datasets

from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax.clustering import chunks
from ecos_jax.clustering import hierarchy

KEY = jax.random.key(0)


def blobs(n=6000, d=5, k=8, spread=2.0):
  features, _ = datasets.make_blobs(
    n, d, centers=k, cluster_std=spread, random_state=0
  )
  return features.astype(np.float32)


def nearest(features, centroids):
  gaps = features[:, None].astype(np.float64) - centroids
  distances = np.sum(gaps**2, axis=2)
  return np.argmin(distances, axis=1), distances.min(axis=1)


def brute_force(features, tree):
  """Each row's nearest fine centroid in its nearest coarse cluster."""
  coarse, _ = nearest(features, tree.coarse)
  labels = np.empty(len(features), int)
  distances = np.empty(len(features))
  for j in range(len(tree.coarse)):
    begin, end = tree.starts[j : j + 2]
    rows = np.flatnonzero(coarse == j)
    inside, distances[rows] = nearest(features[rows], tree.centroids[begin:end])
    labels[rows] = begin + inside
  return labels, distances


def collect(parts):
  starts, parts = zip(*parts, strict=True)
  assert starts[0] == 0
  return tuple(map(np.concatenate, zip(*parts, strict=True)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
  # Tiles and blocks hold 128: fewer, just as many and more of both.
  "n, sizes",
  [(700, [3, 1, 5]), (1500, [128, 129, 1]), (130, [400, 2, 7, 1])],
)
def test_rows_go_to_the_nearest_of_their_coarse_cluster(
  n, sizes, dtype, monkeypatch
):
  random = np.random.default_rng(1)
  features = random.normal(size=(n, 4)).astype(dtype)
  starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
  tree = hierarchy.Tree(
    random.normal(size=(len(sizes), 4)).astype(np.float32),
    random.normal(size=(starts[-1], 4)).astype(np.float32),
    starts,
  )
  monkeypatch.setattr(chunks, "_CPU_CHUNK_BYTES", 1 << 13)
  labels, distances = collect(hierarchy.stream(features, tree))
  expected, gaps = brute_force(features, tree)
  np.testing.assert_array_equal(labels, expected)
  np.testing.assert_allclose(distances, gaps, rtol=1e-4, atol=1e-5)


def test_a_coarse_cluster_without_rows():
  features = blobs(400)
  tree = hierarchy.Tree(
    np.stack([features[0], np.full(5, 1e3, np.float32)]),
    np.concatenate([features[:3], np.full((1, 5), 1e3, np.float32)]),
    np.array([0, 3, 4], np.int32),
  )
  labels, _ = collect(hierarchy.stream(features, tree))
  np.testing.assert_array_equal(labels, nearest(features, features[:3])[0])


def test_the_fit_describes_its_tree():
  features = blobs()
  tree, fit = hierarchy.fit(
    features, 60, KEY, coarse=8, mesh=distributed.mesh()
  )
  labels, distances = brute_force(features, tree)
  assert tree.centroids.shape == (60, 5) and tree.starts[-1] == 60
  assert np.all(np.diff(tree.starts) > 0)
  np.testing.assert_array_equal(fit.sizes, np.bincount(labels, minlength=60))
  assert fit.inertia[-1] == pytest.approx(distances.sum(), rel=1e-4)
  assert np.all(np.diff(fit.inertia) <= 1e-6 * fit.inertia[:-1])
  assert fit.converged and fit.iterations < 50


def test_nearly_as_good_as_one_level():
  features = blobs()
  _, fit = hierarchy.fit(features, 60, KEY, coarse=8)
  flat = cluster.KMeans(60, n_init=1, random_state=0).fit(features)
  assert fit.inertia[-1] < 1.15 * flat.inertia_


def test_deterministic_and_on_a_sample():
  features = blobs()
  one, same = (
    hierarchy.fit(features, 30, KEY, coarse=5, sample=2000)[1] for _ in range(2)
  )
  np.testing.assert_array_equal(one.centroids, same.centroids)
  assert one.sizes.sum() == 2000


def test_as_many_centroids_as_rows():
  features = blobs(50)
  tree, fit = hierarchy.fit(features, 50, KEY, coarse=50)
  assert fit.inertia[-1] < 1e-2
  np.testing.assert_array_equal(
    np.unique(tree.centroids, axis=0), np.unique(features, axis=0)
  )


@pytest.mark.parametrize("k, coarse", [(101, 5), (50, 0), (50, 101)])
def test_refuses_wrong_numbers_of_clusters(k, coarse):
  with pytest.raises(errors.EcosError, match="between 1 and"):
    hierarchy.fit(blobs(100), k, KEY, coarse=coarse)


def test_refuses_features_that_are_not_finite():
  features = blobs(200)
  features[17, 3] = np.nan
  with pytest.raises(errors.EcosError, match="NaN"):
    hierarchy.fit(features, 20, KEY, coarse=4)

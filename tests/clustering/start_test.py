import hypothesis
from hypothesis import strategies
import jax
import numpy as np
import pytest
from sklearn import cluster
from sklearn import datasets

from ecos_jax.clustering import chunks
from ecos_jax.clustering import start

KEY = jax.random.key(0)
MESH = chunks.single_device_mesh()


def blobs(n, d, k, spread, seed=0):
  features, _ = datasets.make_blobs(
    n, d, centers=k, cluster_std=spread, random_state=seed
  )
  return features.astype(np.float32)


def inertia(features, centers):
  gaps = features[:, None].astype(np.float64) - centers
  return np.min(np.sum(gaps**2, axis=2), axis=1).sum()


def their_inertia(features, k):
  return np.median(
    [
      inertia(features, cluster.kmeans_plusplus(features, k, random_state=s)[0])
      for s in range(8)
    ]
  )


@pytest.mark.parametrize("draw", ["plus_plus", "parallel"])
def test_about_as_good_as_scikit_learn(draw):
  features = blobs(2000, 8, 40, spread=0.5)

  def start_of(key):
    if draw == "plus_plus":
      return start.plus_plus(features, 40, key)
    return start.parallel(features, 40, key, MESH)

  ours = [
    inertia(features, np.asarray(start_of(jax.random.key(s)))) for s in range(8)
  ]
  assert np.median(ours) < 1.2 * their_inertia(features, 40)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_parallel_takes_rows_and_is_deterministic(dtype):
  features = blobs(1500, 3, 50, spread=0.2).astype(dtype)
  got = np.asarray(start.parallel(features, 50, KEY, MESH))
  assert got.shape == (50, 3) and got.dtype == np.float32
  rows = {tuple(row) for row in features.astype(np.float32)}
  assert all(tuple(row) in rows for row in got)
  assert len(np.unique(got, axis=0)) == 50
  again = start.parallel(features, 50, KEY, MESH)
  np.testing.assert_array_equal(got, again)


def test_parallel_of_fewer_distinct_rows_than_centroids():
  features = np.repeat(np.eye(3, 5, dtype=np.float32), 100, axis=0)
  got = np.unique(start.parallel(features, 40, KEY, MESH), axis=0)
  np.testing.assert_array_equal(got, np.unique(features, axis=0))


def test_weights_stand_for_repeated_rows():
  # All the mass lies on two rows; the third has none and is never drawn.
  features = np.array([[0.0], [1.0], [9.0]], np.float32)
  weights = np.array([5.0, 5.0, 0.0], np.float32)
  for seed in range(10):
    got = start.plus_plus(features, 2, jax.random.key(seed), weights)
    np.testing.assert_array_equal(np.sort(got, axis=0), features[:2])


def test_plus_plus_takes_every_distinct_sample():
  distinct = np.arange(12, dtype=np.float32).reshape(6, 2) ** 2
  features = np.repeat(distinct, 7, axis=0)
  chosen = np.asarray(start.plus_plus(features, 6, KEY))
  np.testing.assert_array_equal(np.unique(chosen, axis=0), distinct)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  strategies.integers(0, 200), strategies.data(), strategies.integers(0, 9)
)
def test_subsample(n, data, seed):
  size = data.draw(strategies.integers(0, n))
  rows = start.subsample(n, size, jax.random.key(seed))
  assert rows.dtype == np.int64 and len(rows) == size
  assert np.all(np.diff(rows) > 0)
  assert np.all((rows >= 0) & (rows < n))

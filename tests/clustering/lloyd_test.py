import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import lloyd

MESH = chunks.single_device_mesh()


def blobs(n, d, k, spread, seed=0):
  features, _ = datasets.make_blobs(
    n, d, centers=k, cluster_std=spread, random_state=seed
  )
  return features.astype(np.float32)


def brute_force(features, centroids):
  """Labels, sums and counts in float64."""
  gaps = features[:, None].astype(np.float64) - centroids
  distances = np.sum(gaps**2, axis=2)
  labels = np.argmin(distances, axis=1)
  sums = np.zeros(centroids.shape)
  np.add.at(sums, labels, features)
  counts = np.bincount(labels, minlength=len(centroids))
  return labels, sums, counts, distances.min(axis=1).sum()


def moved(centroids, sums, counts):
  occupied = counts > 0
  after = centroids.copy()
  after[occupied] = (sums[occupied] / counts[occupied, None]).astype(np.float32)
  return after


@pytest.mark.parametrize(
  "n, d, k, block, dtype",
  [
    (500, 7, 33, 64, np.float16),
    (500, 7, 33, 64, np.float32),
    (1000, 3, 1, 128, np.float16),
    (300, 16, 20, 300, np.float32),
  ],
)
def test_every_iteration_is_that_of_brute_force(n, d, k, block, dtype):
  features = blobs(n, d, 10, spread=3.0).astype(dtype)
  chunk = jnp.asarray(features)
  centroids = before = features[:k].astype(np.float32)
  bounds = lloyd.no_bounds(n, MESH)
  compared = []
  for _ in range(15):
    moves = lloyd.moves(before, centroids)
    sums, bounds = lloyd.pruned(
      chunk, n, bounds, moves, jnp.asarray(centroids), mesh=MESH, block=block
    )
    labels, expected, counts, inertia = brute_force(features, centroids)
    np.testing.assert_array_equal(bounds.labels, labels)
    np.testing.assert_array_equal(sums.counts, counts)
    np.testing.assert_allclose(sums.features, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(sums.inertia, inertia, rtol=1e-5)
    plain = lloyd.plain(
      chunk, n, jnp.asarray(centroids), mesh=MESH, block=block
    )
    np.testing.assert_array_equal(plain.counts, counts)
    np.testing.assert_allclose(plain.inertia, inertia, rtol=1e-5)
    compared.append(int(sums.compared))
    before, centroids = centroids, moved(centroids, expected, counts)
  assert compared[0] == n
  # Near convergence hardly any row is compared with all centroids.
  assert k == 1 or compared[-1] < n / 4


def test_bounds_are_lower_bounds():
  features = blobs(400, 5, 8, spread=2.0)
  centroids = features[:40].copy()
  bounds = lloyd.no_bounds(400, MESH)
  random = np.random.default_rng(0)
  before = centroids
  for _ in range(6):
    _, bounds = lloyd.pruned(
      jnp.asarray(features),
      400,
      bounds,
      lloyd.moves(before, centroids),
      jnp.asarray(centroids),
      mesh=MESH,
      block=100,
    )
    gaps = features[:, None].astype(np.float64) - centroids
    distances = np.sqrt(np.sum(gaps**2, axis=2))
    distances[np.arange(400), bounds.labels] = np.inf
    assert np.all(bounds.lower <= distances.min(axis=1))
    before = centroids
    # A few jump, the others tremble.
    centroids = centroids + random.normal(0, 0.01, centroids.shape)
    centroids[:2] += random.normal(0, 3, (2, 5))
    centroids = centroids.astype(np.float32)


def test_rows_that_tie_are_left_to_the_comparison():
  # All rows lie between two centroids that do not move.
  centroids = np.array([[-1.0, 0.0], [1.0, 0.0]], np.float32)
  features = np.stack([np.zeros(64), np.arange(64)], axis=1).astype(np.float32)
  bounds = lloyd.no_bounds(64, MESH)
  for _ in range(3):
    sums, bounds = lloyd.pruned(
      jnp.asarray(features),
      64,
      bounds,
      lloyd.moves(centroids, centroids),
      jnp.asarray(centroids),
      mesh=MESH,
      block=16,
    )
    np.testing.assert_array_equal(sums.counts, [64, 0])
    assert int(sums.compared) == 64


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
  strategies.integers(1, 200), strategies.integers(1, 40), strategies.data()
)
def test_moves(k, d, data):
  random = np.random.default_rng(data.draw(strategies.integers(0, 99)))
  before = random.normal(size=(k, d)).astype(np.float32)
  after = before + random.normal(size=(k, 1)).astype(np.float32)
  got = lloyd.moves(before, after)
  distances = np.linalg.norm(after.astype(np.float64) - before, axis=1)
  others = np.delete(distances, got.fastest)
  assert np.all(others <= got.rest)
  assert distances[got.fastest].min() >= others.max(initial=0)


def test_padding_counts_nowhere():
  features = blobs(100, 4, 5, spread=1.0)
  padded = np.concatenate([features, np.zeros((28, 4), np.float32)])
  centroids = features[:12]
  sums, _ = lloyd.pruned(
    jnp.asarray(padded),
    100,
    lloyd.no_bounds(128, MESH),
    lloyd.moves(centroids, centroids),
    jnp.asarray(centroids),
    mesh=MESH,
    block=48,
  )
  _, expected, counts, inertia = brute_force(features, centroids)
  np.testing.assert_array_equal(sums.counts, counts)
  np.testing.assert_allclose(sums.features, expected, rtol=1e-5, atol=1e-3)
  np.testing.assert_allclose(sums.inertia, inertia, rtol=1e-5)
  assert int(sums.compared) == 100


@pytest.mark.parametrize("n", [4000, 4097])
def test_a_pruned_fit_is_the_plain_one(n, monkeypatch):
  monkeypatch.setattr(kmeans, "_MIN_PRUNED_CENTROIDS", 1)
  monkeypatch.setattr(chunks, "_CPU_CHUNK_BYTES", 1 << 15)
  features = blobs(n, 6, 30, spread=2.0)
  fits = [
    kmeans.fit(
      features,
      40,
      jax.random.key(0),
      init=features[:40],
      tolerance=0,
      iterations=12,
      prune=prune,
    )
    for prune in (False, True)
  ]
  np.testing.assert_allclose(fits[0].inertia, fits[1].inertia, rtol=1e-6)
  np.testing.assert_array_equal(fits[0].sizes, fits[1].sizes)
  np.testing.assert_allclose(fits[0].centroids, fits[1].centroids, atol=1e-5)

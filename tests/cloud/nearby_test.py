import numpy as np

from ecos_jax.cloud import nearby


def test_density_is_interpolated():
  centroids = np.array([[0.0], [2], [10], [90]], np.float32)
  density = np.array([1.0, 3, 0, 100])
  features = np.array([[-50.0], [0], [1], [2]], np.float32)
  padded = np.concatenate([features, np.zeros((4, 1), np.float32)])[None]
  got = np.zeros((1, 8))
  at = nearby.Interpolation.of(centroids, density, np.array([1]))
  at.fill(got, padded, [4], [1])
  gaps = (features - centroids[:, 0]) ** 2
  gaps -= gaps.min(axis=1, keepdims=True)
  weights = np.exp(-gaps / np.median(np.sort(gaps, axis=1)[:, 2]))
  expected = [w @ density / w.sum() for w in weights]
  np.testing.assert_allclose(got[0, :4], expected, rtol=1e-4)
  at = nearby.Interpolation.of(centroids[:1], density[:1], np.array([0]))
  at.fill(got, padded, [4], [0])
  np.testing.assert_allclose(got[0, :4], 1.0)


def test_neighbours_are_the_nearest_centroids():
  random = np.random.default_rng(0)
  centroids = random.normal(size=(30, 3)).astype(np.float32)
  got = nearby._neighbours(centroids, np.array([4, 17]))
  for r, row in zip((4, 17), got, strict=True):
    gaps = np.sum((centroids - centroids[r]) ** 2, axis=1)
    assert set(row.tolist()) == set(np.argsort(gaps)[:8].tolist())
  assert nearby._neighbours(centroids[:3], np.array([0])).shape == (1, 3)

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn import cluster
from sklearn import datasets

from ecos_jax import errors
from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import start as start_lib

KEY = jax.random.key(0)


class Stream:
  """A minimal feature bank: blocks in two reused buffers."""

  def __init__(self, features):
    self.features = features
    self.shape = features.shape
    self.dtype = features.dtype
    self.passes = 0

  def blocks(self, rows, part=slice(None)):
    self.passes += 1
    buffers = np.empty((2, rows, self.shape[1]), self.dtype)
    for number, start in enumerate(range(0, self.shape[0], rows)):
      block = self.features[start : start + rows]
      buffer = buffers[number % 2]
      buffer[:] = np.nan
      buffer[: len(block)] = block
      yield start, buffer[: len(block)][part]

  def take(self, indices):
    return self.features[indices].astype(np.float32)


def blobs(n=3000, d=6, k=12, spread=1.0, seed=0):
  features, _ = datasets.make_blobs(
    n, d, centers=k, cluster_std=spread, random_state=seed
  )
  return features.astype(np.float32)


@pytest.mark.parametrize(
  "n, d, k", [(3000, 6, 12), (2000, 72, 100), (9001, 4, 5), (50, 3, 1)]
)
def test_same_centroids_as_scikit_learn_from_the_same_start(n, d, k):
  features = blobs(n, d, k, spread=4.0)
  init = features[np.random.default_rng(1).choice(n, k, replace=False)]
  expected = cluster.KMeans(
    k, init=init, n_init=1, max_iter=20, tol=0, algorithm="lloyd"
  ).fit(features)
  got = kmeans.fit(features, k, KEY, init=init, iterations=20, tolerance=0)
  np.testing.assert_allclose(
    got.centroids, expected.cluster_centers_, atol=1e-4
  )
  np.testing.assert_allclose(got.inertia[-1], expected.inertia_, rtol=1e-5)
  np.testing.assert_array_equal(got.sizes, np.bincount(expected.labels_))


def test_the_result_describes_its_centroids():
  features = blobs()
  got = kmeans.fit(features, 12, KEY)
  nearest = assign.assign(features, got.centroids)
  np.testing.assert_array_equal(
    got.sizes, np.bincount(nearest.labels, minlength=12)
  )
  assert got.inertia[-1] == pytest.approx(nearest.distances.sum(), rel=1e-5)
  assert len(got.inertia) == got.iterations + 1
  assert got.converged and got.iterations < 50
  assert np.all(np.diff(got.inertia) <= 1e-5 * got.inertia[:-1])
  assert got.centroids.dtype == np.float32 and got.sizes.dtype == np.int64


def test_the_start_finds_separated_blobs():
  features = blobs(5000, 4, 20, spread=0.05, seed=3)
  got = kmeans.fit(features, 20, KEY)
  best = cluster.KMeans(20, n_init=5, random_state=0).fit(features).inertia_
  assert got.inertia[-1] == pytest.approx(best, rel=1e-3)
  assert got.sizes.min() > 0


def test_empty_clusters_move_to_the_farthest_samples():
  features = blobs(600, 2, 3, spread=0.1, seed=5)
  # All but one start far from everything, so they begin empty.
  init = np.full((3, 2), 1e3, np.float32)
  init[0] = features[0]
  got = kmeans.fit(features, 3, KEY, init=init)
  assert got.reseeded >= 2
  assert got.sizes.min() == 200
  assert got.converged


def test_fewer_distinct_samples_than_clusters():
  features = np.repeat(np.eye(3, 5, dtype=np.float32), 10, axis=0)
  got = kmeans.fit(features, 8, KEY)
  assert got.converged and got.inertia[-1] < 1e-5
  assert got.sizes.sum() == 30 and np.count_nonzero(got.sizes) == 3


def test_as_many_clusters_as_samples():
  features = blobs(16, 3, 4)
  got = kmeans.fit(features, 16, KEY)
  np.testing.assert_array_equal(got.sizes, 1)
  assert got.inertia[-1] < 1e-2


def test_deterministic_for_a_key():
  features = blobs(spread=5.0)
  one, same = (kmeans.fit(features, 12, KEY) for _ in range(2))
  other = kmeans.fit(features, 12, jax.random.key(1))
  np.testing.assert_array_equal(one.centroids, same.centroids)
  assert not np.array_equal(one.centroids, other.centroids)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("memory_budget", [0, 1 << 30])
def test_a_stream_gives_the_result_of_memory(dtype, memory_budget):
  features = blobs(spread=3.0).astype(dtype)
  expected = kmeans.fit(features, 12, KEY, iterations=7, tolerance=0)
  stream = Stream(features)
  got = kmeans.fit(
    stream, 12, KEY, iterations=7, tolerance=0, memory_budget=memory_budget
  )
  np.testing.assert_array_equal(got.centroids, expected.centroids)
  np.testing.assert_array_equal(got.sizes, expected.sizes)
  assert stream.passes == (1 if memory_budget else got.iterations + 1)


def test_many_chunks(monkeypatch):
  features = blobs(spread=3.0)
  expected = kmeans.fit(features, 12, KEY, iterations=7, tolerance=0)
  monkeypatch.setattr(chunks, "_CPU_CHUNK_BYTES", 4096)
  assert chunks.plan((3000, 6), 12, chunks.single_device_mesh()).chunk < 200
  got = kmeans.fit(Stream(features), 12, KEY, iterations=7, tolerance=0)
  np.testing.assert_allclose(got.centroids, expected.centroids, atol=1e-5)


def test_fit_on_a_sample():
  features = blobs(20_000, 4, 10, spread=0.1, seed=2)
  got = kmeans.fit(Stream(features), 10, KEY, sample=1000)
  whole = kmeans.fit(features, 10, KEY)
  assert got.sizes.sum() == 1000
  far = assign.assign(got.centroids, whole.centroids).distances
  assert far.max() < 0.01


@pytest.fixture
def small_samples(monkeypatch):
  # So that small data have several nested samples, which are whole chunks.
  monkeypatch.setattr(start_lib, "_MIN_ROWS", 2048)
  monkeypatch.setattr(chunks, "_CPU_CHUNK_BYTES", 1 << 15)


def _plain(features, key):
  """Returns k-means without nested samples, from the same first centroids."""
  _, start_key = jax.random.split(key)
  mesh = chunks.single_device_mesh()
  init = start_lib.centroids(features, 50, start_key, mesh)
  return kmeans.fit(features, 50, key, init=init)


def test_a_nested_start_is_as_good_as_plain_iterations(small_samples):
  # Local minima differ by 1 to 3 % between keys, so over several data and keys.
  ratios = []
  for seed in range(2):
    for spread in (1.0, 3.0):
      features = blobs(10_000, 8, 60, spread, seed)
      nested, plain = (
        np.mean(
          [fit(features, jax.random.key(s)).inertia[-1] for s in range(10)]
        )
        for fit in (lambda x, key: kmeans.fit(x, 50, key), _plain)
      )
      ratios.append(nested / plain)
  assert np.mean(ratios) < 1.001


def test_a_nested_start_needs_few_iterations_on_all_rows(small_samples):
  features = blobs(10_000, 8, 60, spread=3.0)
  nested = kmeans.fit(features, 50, KEY)
  plain = _plain(features, KEY)
  assert nested.iterations < plain.iterations / 2


@pytest.mark.parametrize("k", [0, 11])
def test_refuses_a_wrong_number_of_clusters(k):
  with pytest.raises(errors.EcosError, match=r"between 1 and .* 10"):
    kmeans.fit(np.zeros((10, 2), np.float32), k, KEY)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_features_that_are_not_finite(bad):
  features = blobs()
  features[17, 3] = bad
  with pytest.raises(errors.EcosError, match="NaN"):
    kmeans.fit(features, 12, KEY)


@pytest.mark.parametrize("place", [np.asarray, Stream])
@pytest.mark.parametrize("budget", [0, 2**30])
def test_a_mean_of_10_000_spreads_changes_only_rounding(place, budget):
  features = blobs() + np.float32([2e5, 0, -2e5, 0, 0, 0])
  init = features[np.random.default_rng(1).choice(3000, 12, replace=False)]
  expected = cluster.KMeans(
    12, init=init, n_init=1, max_iter=20, tol=0, algorithm="lloyd"
  ).fit(features.astype(np.float64))
  got = kmeans.fit(
    place(features),
    12,
    KEY,
    init=init,
    iterations=20,
    tolerance=0,
    memory_budget=budget,
  )
  np.testing.assert_allclose(got.inertia[-1], expected.inertia_, rtol=1e-4)
  # float32 has steps of 1/64 there.
  np.testing.assert_allclose(
    got.centroids, expected.cluster_centers_, rtol=0, atol=0.02
  )
  np.testing.assert_array_equal(
    got.sizes, np.bincount(expected.labels_, minlength=12)
  )


def test_refuses_a_start_of_another_shape():
  with pytest.raises(ValueError, match=r"\[12, 6\]"):
    kmeans.fit(blobs(), 12, KEY, init=np.zeros((12, 5)))


_EIGHT_DEVICES = """
import sys
import jax
import numpy as np
from ecos_jax import distributed
from ecos_jax.clustering import assign, chunks, kmeans
mesh = distributed.mesh()
assert mesh.size == 8
# Small data, and all that large data meet: pruning and several chunks.
kmeans._MIN_PRUNED_CENTROIDS = 1
chunks._CPU_CHUNK_BYTES = 1 << 13
for path in sys.argv[1:]:
  features = np.load(path)
  key = jax.random.key(0)
  fit = kmeans.fit(features, 12, key, mesh=mesh)
  stream = kmeans.fit(features, 12, key, mesh=mesh, memory_budget=0)
  assert np.allclose(fit.centroids, stream.centroids, atol=1e-5)
  labels = assign.assign(features, fit.centroids, mesh=mesh).labels
  # The same wherever the features begin in memory.
  memory = np.empty(features.size + 32, np.float32)
  begin = -memory.ctypes.data % 64 // 4
  for offset in (0, 5):
    shifted = memory[begin + offset :][: features.size].reshape(features.shape)
    shifted[:] = features
    again = assign.assign(shifted, fit.centroids, mesh=mesh).labels
    assert np.array_equal(again, labels)
  np.savez(path + "z", labels=labels, **fit._asdict())
"""


def test_eight_devices_give_the_result_of_one(tmp_path):
  every = {str(tmp_path / f"{n}.npy"): blobs(n, spread=0.3) for n in (3001, 13)}
  for path, features in every.items():
    np.save(path, features)
  environment = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
  }
  subprocess.run(
    [sys.executable, "-c", _EIGHT_DEVICES, *every], env=environment, check=True
  )
  for path, features in every.items():
    expected = kmeans.fit(features, 12, KEY)
    with np.load(path + "z.npz") as got:
      np.testing.assert_allclose(
        got["centroids"], expected.centroids, atol=1e-4
      )
      np.testing.assert_array_equal(got["sizes"], expected.sizes)
      np.testing.assert_array_equal(
        got["labels"], assign.assign(features, expected.centroids).labels
      )
      assert int(got["iterations"]) == expected.iterations

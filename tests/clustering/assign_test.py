import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks


def reference(features, centroids):
  """Brute force in float64: labels, squared distances."""
  x = np.asarray(features, np.float64)
  c = np.asarray(centroids, np.float64)
  distances = np.stack([np.sum((x - row) ** 2, axis=1) for row in c], axis=1)
  return np.argmin(distances, axis=1), np.min(distances, axis=1)


def check(features, centroids, **options):
  got = assign.assign(features, centroids, **options)
  labels, distances = reference(features, centroids)
  assert got.labels.dtype == np.int32
  assert got.distances.dtype == np.float32
  np.testing.assert_array_equal(got.labels, labels)
  scale = np.sum(np.asarray(features, np.float64) ** 2, axis=1)
  error = np.abs(got.distances - distances)
  assert np.all(error <= 4e-6 * (scale + distances) + 1e-12)


@pytest.mark.parametrize("d", [1, 7, 64, 72, 129])
@pytest.mark.parametrize("n, k", [(1, 1), (5, 3), (257, 33), (1000, 100)])
def test_equals_brute_force(n, d, k):
  random = np.random.default_rng(n * d + k)
  features = random.normal(size=(n, d)).astype(np.float32)
  centroids = random.normal(size=(k, d)).astype(np.float32)
  check(features, centroids)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
  random = np.random.default_rng(0)
  features = random.normal(size=(500, 24)).astype(dtype)
  check(features, random.normal(size=(40, 24)).astype(np.float32))


def test_ties_go_to_the_lowest_index():
  # Whole numbers: all scores are exact, and many are equal.
  random = np.random.default_rng(0)
  features = random.integers(-2, 3, (3000, 3)).astype(np.float32)
  centroids = random.integers(-2, 3, (200, 3)).astype(np.float32)
  check(features, centroids)


def test_all_equal_centroids_give_label_zero():
  got = assign.assign(np.ones((9, 4), np.float32), np.ones((1000, 4)))
  np.testing.assert_array_equal(got.labels, 0)
  np.testing.assert_array_equal(got.distances, 0)


def test_a_sample_on_its_centroid_has_no_distance():
  features = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
  got = assign.assign(features, features)
  np.testing.assert_array_equal(got.labels, np.arange(50))
  np.testing.assert_allclose(got.distances, 0, atol=1e-5)


def test_a_mean_of_10_000_spreads_changes_only_rounding():
  random = np.random.default_rng(0)
  features = random.normal(size=(3000, 16)).astype(np.float32)
  centroids = random.normal(size=(50, 16)).astype(np.float32)
  # Multiples of 1/256 up to 2^15: adding the offset is exact.
  features, centroids = (np.round(a * 256) / 256 for a in (features, centroids))
  offset = np.float32([1e4, -1e4] * 8)
  got = assign.assign(features + offset, centroids + offset)
  labels, distances = reference(features + offset, centroids + offset)
  np.testing.assert_array_equal(got.labels, labels)
  np.testing.assert_allclose(got.distances, distances, rtol=1e-5)


def test_no_features():
  got = assign.assign(np.zeros((0, 4), np.float32), np.zeros((3, 4)))
  assert got.labels.shape == got.distances.shape == (0,)


def test_many_chunks_and_blocks_of_a_small_memory_budget():
  random = np.random.default_rng(0)
  features = random.normal(size=(1003, 8)).astype(np.float32)
  centroids = random.normal(size=(20, 8)).astype(np.float32)
  shapes = chunks.plan(
    features.shape, 20, chunks.single_device_mesh(), memory_budget=8192
  )
  assert shapes.block < shapes.chunk < 100
  check(features, centroids, memory_budget=8192)


def at(offset, array):
  """The same numbers, `offset` bytes after a boundary of 64."""
  memory = np.empty(array.nbytes + 128, np.uint8)
  begin = -memory.ctypes.data % 64 + offset
  placed = memory[begin : begin + array.nbytes].view(array.dtype)
  placed = placed.reshape(array.shape)
  placed[:] = array
  return placed


@pytest.mark.parametrize("offset", [0, 16])
def test_lengths_of_one_plan_compile_once(offset):
  centroids = np.eye(4, dtype=np.float32)

  def features(n):
    return at(offset, np.zeros((n, 4), np.float32))

  assign.assign(features(1025), centroids)
  before = assign.assign_chunk._cache_size()
  for n in (1026, 1100, 1151):
    assign.assign(features(n), centroids)
  assert assign.assign_chunk._cache_size() == before


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("offset", [0, 4, 16, 60])
@pytest.mark.parametrize("n", [1003, 1024])
def test_wherever_the_features_begin(dtype, offset, n):
  random = np.random.default_rng(0)
  features = random.normal(size=(n, 32)).astype(dtype)
  centroids = random.normal(size=(20, 32)).astype(np.float32)
  check(at(offset, features), centroids, memory_budget=32768)


def test_columns_of_a_wider_array():
  random = np.random.default_rng(0)
  features = random.normal(size=(500, 48)).astype(np.float32)[:, 4:36]
  check(features, random.normal(size=(20, 32)).astype(np.float32))


def test_stream_yields_rows_in_order():
  random = np.random.default_rng(0)
  features = random.normal(size=(700, 5)).astype(np.float32)
  centroids = random.normal(size=(9, 5)).astype(np.float32)
  whole = assign.assign(features, centroids)
  end = 0
  for start, part in assign.stream(features, centroids, memory_budget=4096):
    assert start == end
    end += len(part.labels)
    np.testing.assert_array_equal(part.labels, whole.labels[start:end])
  assert end == 700


def test_argmax_of_infinite_and_equal_scores():
  scores = jnp.array([[-jnp.inf, 3, 3], [5, 5, 1], [-jnp.inf] * 3])
  best, index = jax.jit(assign.argmax)(scores)
  np.testing.assert_array_equal(best, [3, 5, -np.inf])
  np.testing.assert_array_equal(index, [1, 0, 0])


def test_accelerators_break_ties_by_index():
  exported = jax.export.export(jax.jit(assign.argmax), platforms=["cuda"])(
    jax.ShapeDtypeStruct((8, 16), jnp.float32)
  )
  text = str(exported.mlir_module())
  assert "EQ" in text and "optimization_barrier" not in text

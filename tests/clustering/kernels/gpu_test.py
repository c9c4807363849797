import jax
from jax._src.pallas.mosaic_gpu.interpret import params
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ecos_jax.clustering.kernels import gpu


@pytest.fixture
def interpreted(monkeypatch):
  """The kernel with its copies and barriers, run on the CPU.

  The interpreter has no tensor core that takes registers, so the products alone
  are computed in another way.
  """

  def multiply(features, centroids_ref):
    return sum(
      jnp.matmul(
        features[i], centroids_ref[j].T, preferred_element_type=jnp.float32
      )
      for i, j in gpu._PAIRS
    )

  monkeypatch.setattr(gpu, "_multiply", multiply)
  interpret = params.InterpretGPUParams(detect_races=True)
  return lambda *arrays: gpu.nearest(*arrays, interpret=interpret)


def check(nearest, features, centroids):
  scores, labels = nearest(jnp.asarray(features), jnp.asarray(centroids))
  x, c = np.asarray(features, np.float64), np.asarray(centroids, np.float64)
  expected = x @ c.T - np.sum(c * c, axis=1) / 2
  assert scores.dtype == jnp.float32 and labels.dtype == jnp.int32
  np.testing.assert_array_equal(labels, np.argmax(expected, axis=1))
  largest = np.sum(x * x, axis=1) + np.max(np.sum(c * c, axis=1))
  error = np.abs(scores - np.max(expected, axis=1))
  assert np.all(error <= 1e-6 * largest)


def normal(*shape):
  random = np.random.default_rng(shape)
  return random.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
  "n, d, k",
  [
    (1, 1, 1),
    (5, 7, 3),
    (128, 64, 128),
    (129, 72, 130),
    (300, 128, 100),
    (70, 384, 257),
    (3, 512, 129),
    (130, 768, 33),
    (9, 1280, 2),
  ],
)
def test_equals_brute_force(interpreted, n, d, k):
  check(interpreted, normal(n, d), normal(k, d))

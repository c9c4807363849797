import jax
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret import params
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kernels
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
    (30, 128, 100),
    (70, 384, 257),
    (3, 512, 129),
    (13, 768, 33),
    (9, 1280, 2),
  ],
)
def test_equals_brute_force(interpreted, n, d, k):
  check(interpreted, normal(n, d), normal(k, d))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_features(interpreted, dtype):
  check(interpreted, normal(20, 40).astype(dtype), normal(9, 40))


def test_ties_go_to_the_lowest_index(interpreted):
  # Whole numbers: all scores are exact, and equal within and across tiles.
  random = np.random.default_rng(0)
  features = random.integers(-2, 3, (100, 3)).astype(np.float32)
  centroids = random.integers(-2, 3, (200, 3)).astype(np.float32)
  check(interpreted, features, centroids)


def test_duplicate_centroids_give_the_first(interpreted):
  centroids = np.tile(normal(70, 33), (2, 1))
  scores, labels = interpreted(centroids[:70], centroids)
  np.testing.assert_array_equal(labels, np.arange(70))
  np.testing.assert_allclose(
    scores, np.sum(centroids[:70] ** 2, axis=1) / 2, rtol=1e-6
  )


def test_no_data_races(interpreted):
  check(interpreted, normal(128, 200), normal(129, 200))
  assert not interpret_pallas_call.get_races().races_found


def test_three_parts_are_the_whole():
  x = normal(1000) * np.float32(10) ** np.linspace(-25, 25, 1000, dtype="f")
  parts = jax.jit(
    lambda x: gpu._split(x, lambda x: jax.lax.reduce_precision(x, 8, 7))
  )(x)
  whole = sum(np.asarray(part, np.float64) for part in parts)
  np.testing.assert_array_equal(whole, x)


def accumulate(total, a, b):
  """Models a tensor core: total + a.b, where low bits are dropped.

  Products and total are cut to 24 bits below the largest of them, added, and
  cut again (Fasi, Higham, Mikaitis and Pranesh, 2021: "Numerical behavior of
  NVIDIA tensor cores").
  """

  def cut(values, largest):
    unit = np.exp2(np.floor(np.log2(largest)) - 23)
    return np.trunc(values / unit) * unit

  products = a[:, None] * b[None]
  largest = np.maximum(np.abs(products).max(-1), np.abs(total))
  largest = np.maximum(largest, 1e-30)
  exact = cut(products, largest[..., None]).sum(-1) + cut(total, largest)
  return cut(exact, np.maximum(np.abs(exact), 1e-30))


@pytest.mark.parametrize("sign", ["positive", "mixed"])
@pytest.mark.parametrize("d", [64, 512])
def test_modelled_tensor_cores_are_no_worse_than_float32(sign, d):
  features, centroids = normal(100, d), normal(101, d)
  if sign == "positive":  # The hardest: whatever is cut off adds up.
    features, centroids = np.abs(features), np.abs(centroids)

  def parts(x):
    split = gpu._split(x, lambda x: jax.lax.reduce_precision(x, 8, 7))
    return [np.asarray(part, np.float64) for part in split]

  x, c = parts(features), parts(centroids)
  products = np.zeros((100, 101), np.float32)
  for start in range(0, d, gpu._FEATURES):
    total = np.zeros((100, 101))
    for i, j in gpu._PAIRS:
      for first in range(start, start + gpu._FEATURES, 16):
        part = slice(first, first + 16)
        total = accumulate(total, x[i][:, part], c[j][:, part])
    products += total.astype(np.float32)

  float32 = np.zeros((100, 101), np.float32)
  for column in range(d):
    float32 += np.outer(features[:, column], centroids[:, column])
  exact = np.float64(features) @ np.float64(centroids).T
  error = np.abs(products - exact)
  assert np.sqrt(np.mean(error**2)) < np.sqrt(np.mean((float32 - exact) ** 2))
  assert np.max(error) < np.max(np.abs(float32 - exact))


@pytest.mark.parametrize("n, d, k", [(1, 1, 1), (1000, 72, 100)])
def test_lowers_for_cuda(n, d, k):
  exported = jax.export.export(
    jax.jit(gpu.nearest),
    platforms=["cuda"],
    disabled_checks=[
      jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")
    ],
  )(
    jax.ShapeDtypeStruct((n, d), jnp.float32),
    jax.ShapeDtypeStruct((k, d), jnp.float32),
  )
  assert "mosaic_gpu_v2" in exported.mlir_module()


def test_other_chips_get_no_kernel():
  assert not kernels.hopper(chunks.single_device_mesh().abstract_mesh)
  assert not kernels.hopper(jax.sharding.get_abstract_mesh())
  for platform in ("cpu", "cuda", "tpu"):
    # No mesh says that these are Hopper GPUs.
    exported = jax.export.export(jax.jit(assign.nearest), platforms=[platform])(
      jax.ShapeDtypeStruct((64, 16), jnp.float32),
      jax.ShapeDtypeStruct((9, 16), jnp.float32),
    )
    assert "mosaic_gpu" not in exported.mlir_module()


@pytest.mark.gpu
def test_on_a_hopper_gpu():
  for n, d, k in ((5, 7, 3), (1000, 72, 100), (5000, 384, 4097)):
    check(jax.jit(gpu.nearest), normal(n, d), normal(k, d))

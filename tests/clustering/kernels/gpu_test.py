import functools
import types

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
from ecos_jax.clustering import lloyd
from ecos_jax.clustering.kernels import gpu

_TYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


@pytest.fixture
def interpreted(monkeypatch):
  """The kernel with its copies and barriers, run on the CPU.

  Before JAX 0.11 the interpreter knows neither tensor cores with transposed
  tiles nor `plgpu.load`: there these two are done in another way.
  """

  def multiply(rows, centroids):
    return sum(
      jnp.matmul(
        rows[i][...], centroids[j][...].T, preferred_element_type=jnp.float32
      )
      for i, j in gpu._pairs(len(rows), len(centroids))
    )

  if jax.__version_info__ < (0, 11):
    monkeypatch.setattr(gpu, "_multiply", multiply)
    monkeypatch.setattr(gpu, "_load_one_each", lambda ref, rows: ref[rows])
  # Tiles of rows share a program, so that their memory is used again.
  monkeypatch.setattr(gpu, "_MULTIPROCESSORS", 2)
  interpret = params.InterpretGPUParams(detect_races=True)

  def nearest(*arrays, **options):
    program = functools.partial(gpu.nearest, interpret=interpret, **options)
    results = jax.block_until_ready(jax.jit(program)(*arrays))
    assert not interpret_pallas_call.get_races().races_found
    return results

  return nearest


def check(nearest, features, centroids, rounding=1e-6):
  scores, labels = nearest(jnp.asarray(features), jnp.asarray(centroids))
  x, c = np.asarray(features, np.float64), np.asarray(centroids, np.float64)
  expected = x @ c.T - np.sum(c * c, axis=1) / 2
  assert scores.dtype == jnp.float32 and labels.dtype == jnp.int32
  largest = np.sum(x * x, axis=1) + np.max(np.sum(c * c, axis=1))
  error = np.abs(scores - np.max(expected, axis=1))
  assert np.all(error <= rounding * largest)
  if rounding == 1e-6:
    np.testing.assert_array_equal(labels, np.argmax(expected, axis=1))
  else:
    loss = np.max(expected, axis=1) - expected[np.arange(len(x)), labels]
    assert np.all(loss <= rounding * largest)


def normal(*shape):
  random = np.random.default_rng(shape)
  return random.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
  "n, d, k, dtype",
  [
    (1, 1, 1, np.float32),
    # Three tiles of rows in two programs, and more steps than slots.
    (300, 72, 257, np.float16),
    (129, 64, 130, ml_dtypes.bfloat16),
    # Rows that do not fit in shared memory, in one part and in two.
    (130, 768, 129, np.float16),
    (5, 400, 130, np.float32),
  ],
)
def test_equals_brute_force(interpreted, n, d, k, dtype):
  # Lengths that differ by orders of magnitude, as float16 alone would not bear.
  scale = np.float32(10) ** np.linspace(-3, 3, n, dtype=np.float32)[:, None]
  scale = 1 if dtype == np.float16 else scale
  check(interpreted, (normal(n, d) * scale).astype(dtype), normal(k, d))


def test_fast_is_as_good_as_float16(interpreted):
  features, centroids = normal(130, 70).astype(np.float16), normal(9, 70)
  check(
    lambda *arrays: interpreted(*arrays, fast=True),
    features,
    centroids,
    rounding=1e-3,
  )


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


def parts(x, count):
  """Returns the float16 parts that the kernel makes, in float64."""
  scale = gpu._scale(jnp.max(jnp.abs(x)))
  split = jax.jit(gpu._split, static_argnums=1)(x * scale, count)
  return np.asarray(split, np.float64) / float(scale)


@pytest.mark.parametrize("largest", [1e-30, 1.0, 1e30])
def test_two_parts_are_the_whole_to_float32s_rounding(largest):
  x = normal(1000) * np.float32(largest) / 8
  error = np.abs(np.sum(parts(x, 2), axis=0) - x)
  # Of each number, or of the largest where float16 ends.
  assert np.all(error <= np.maximum(2.0**-23 * np.abs(x), 2.0**-28 * x.max()))


def test_one_part_is_the_whole_of_bfloat16():
  x = normal(1000).astype(ml_dtypes.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(parts(x, 1)[0], x)


def accumulate(total, a, b):
  """Models a tensor core of an H100: total + a.b, where low bits are dropped.

  Products and total are cut to 26 bits below the largest of them, added, and
  cut to 24 (Fasi, Higham, Mikaitis and Pranesh, 2021: "Numerical behavior of
  NVIDIA tensor cores"). An H100 was seen to keep 26: 1 + 15 * 2^-25 counts the
  small terms, 1 + 15 * 2^-26 does not.
  """

  def cut(values, largest, bits):
    unit = np.exp2(np.floor(np.log2(largest)) - bits + 1)
    return np.trunc(values / unit) * unit

  products = a[:, None] * b[None]
  largest = np.maximum(np.abs(products).max(-1), np.abs(total))
  largest = np.maximum(largest, 1e-30)
  exact = cut(products, largest[..., None], 26).sum(-1) + cut(
    total, largest, 26
  )
  return cut(exact, np.maximum(np.abs(exact), 1e-30), 24)


@pytest.mark.parametrize("row_parts", [1, 2])
@pytest.mark.parametrize("sign", ["positive", "mixed"])
@pytest.mark.parametrize("d", [64, 512])
def test_modelled_tensor_cores_are_as_good_as_float32(sign, d, row_parts):
  features, centroids = normal(100, d), normal(101, d)
  if sign == "positive":  # The hardest: whatever is cut off adds up.
    features, centroids = np.abs(features), np.abs(centroids)
  if row_parts == 1:
    features = features.astype(np.float16).astype(np.float32)
  x, c = parts(features, row_parts), parts(centroids, 2)
  products = np.zeros((100, 101), np.float32)
  for start in range(0, d, gpu._FEATURES):
    total = np.zeros((100, 101))
    for i, j in gpu._pairs(row_parts, 2):
      for first in range(start, start + gpu._FEATURES, 16):
        part = slice(first, first + 16)
        total = accumulate(total, x[i][:, part], c[j][:, part])
    products += total.astype(np.float32)

  float32 = np.zeros((100, 101), np.float32)
  for column in range(d):
    float32 += np.outer(features[:, column], centroids[:, column])
  exact = np.float64(features) @ np.float64(centroids).T
  error, bearable = np.abs(products - exact), np.abs(float32 - exact)
  assert np.max(error) < np.max(bearable)
  # Short sums of positive numbers are where float32 does best.
  worse = 2.5 if sign == "positive" and d == 64 else 1
  rms, bearable = (np.sqrt(np.mean(e**2)) for e in (error, bearable))
  assert rms < worse * bearable


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@pytest.mark.parametrize("n, d, k", [(1, 1, 1), (1000, 72, 100)])
def test_lowers_for_cuda(n, d, k, dtype):
  exported = jax.export.export(
    jax.jit(gpu.nearest),
    platforms=["cuda"],
    disabled_checks=[
      jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")
    ],
  )(
    jax.ShapeDtypeStruct((n, d), dtype),
    jax.ShapeDtypeStruct((k, d), jnp.float32),
  )
  assert "mosaic_gpu_v2" in exported.mlir_module()


def test_other_chips_get_no_kernel():
  mesh = chunks.single_device_mesh().abstract_mesh
  assert kernels.assignment(mesh) == "xla"
  assert kernels.assignment(jax.sharding.get_abstract_mesh()) == "xla"
  for platform in ("cpu", "cuda", "tpu"):
    # No mesh says that these are Hopper GPUs.
    exported = jax.export.export(jax.jit(assign.nearest), platforms=[platform])(
      jax.ShapeDtypeStruct((64, 16), jnp.float32),
      jax.ShapeDtypeStruct((9, 16), jnp.float32),
    )
    assert "mosaic_gpu" not in exported.mlir_module()


def test_hopper_gpus_get_the_program_that_is_chosen(monkeypatch):
  device = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
  mesh = types.SimpleNamespace(abstract_device=device)
  monkeypatch.delenv(kernels.VARIABLE, raising=False)
  assert kernels.assignment(mesh) == "kernel"
  for name in kernels.ASSIGNMENTS:
    monkeypatch.setenv(kernels.VARIABLE, name)
    assert kernels.assignment(mesh) == name


@pytest.mark.gpu
def test_on_a_hopper_gpu():
  for dtype in _TYPES:
    for n, d, k in ((5, 7, 3), (1000, 72, 100), (5000, 384, 4097)):
      check(jax.jit(gpu.nearest), normal(n, d).astype(dtype), normal(k, d))


@pytest.mark.gpu
def test_only_fitting_is_fast_on_a_hopper_gpu(monkeypatch):
  monkeypatch.setenv(kernels.VARIABLE, "fast")
  jax.clear_caches()
  features, centroids = normal(3000, 64).astype(np.float16), normal(50, 64)
  mesh = chunks.single_device_mesh()
  labels, distances = assign.assign(features, centroids)
  sums = lloyd.plain(
    jnp.asarray(features), 3000, centroids, mesh=mesh, block=3000
  )
  exact = np.sum((features.astype(np.float64) - centroids[labels]) ** 2, 1)
  np.testing.assert_allclose(distances, exact, rtol=1e-5)
  assert sums.inertia != np.sum(distances)
  np.testing.assert_allclose(sums.inertia, np.sum(exact), rtol=1e-3)

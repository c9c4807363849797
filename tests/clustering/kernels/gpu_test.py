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
from ecos_jax.clustering.kernels import parts

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
      for i, j in parts.pairs(len(rows), len(centroids))
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

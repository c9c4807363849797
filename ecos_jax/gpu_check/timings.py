"""Times of the heavy stages on a GPU, beside flash-kmeans's published ones.

Times are medians of rounds of several calls in a row, whose results are awaited
once. Arrays lie on the device unless said.
"""

from collections import deque
from collections.abc import Callable, Iterator
import contextlib
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax.benchmark import calls
from ecos_jax.benchmark import ours
from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kernels
from ecos_jax.clustering import lloyd
from ecos_jax.encoders import registry
from ecos_jax.gpu_check import checks
from ecos_jax.models import efficientnet
from ecos_jax.models import resnet
from ecos_jax.models import vit

MESH = chunks.single_device_mesh
_ROWS = 1 << 20
# flash-kmeans (2026) on an H100: an assignment of 1,048,576 float16 rows with
# one float16 product, the best of its grid, in ms.
_FLASH_KMEANS = {
  64: {256: 0.169, 1024: 0.599, 4096: 2.32},
  128: {256: 0.229, 1024: 0.773, 4096: 2.84},
  256: {256: 0.434, 1024: 1.33, 4096: 4.92},
  512: {256: 0.901, 1024: 2.90, 4096: 10.8},
}
# The most usual shapes first.
_DEPTHS, _CENTROIDS = (128, 512, 64, 256), (1024, 4096, 256)


def _milliseconds(call: Callable[[], Any], tiny: bool) -> float:
  """Returns the median of 5 rounds, of as many calls as take some 20 ms."""
  jax.block_until_ready(call())
  seconds, _ = calls.timed(lambda: jax.block_until_ready(call()))
  count = 1 if tiny else min(max(int(0.02 / seconds), 2), 50)

  def several():
    # All results but the last are dropped, so that memory is used again.
    jax.block_until_ready(deque((call() for _ in range(count)), 1).pop())

  rounds = [calls.timed(several)[0] / count for _ in range(1 if tiny else 5)]
  return float(np.median(rounds)) * 1e3


@functools.partial(jax.jit, static_argnames=("dtype", "precision"))
def _product(features, centroids, *, dtype, precision):
  return jax.lax.dot_general(
    features,
    centroids.astype(features.dtype),
    (((1,), (1,)), ((), ())),
    precision=precision,
    preferred_element_type=dtype,
  )


def _arrays(n: int, d: int, k: int) -> tuple[jax.Array, jax.Array]:
  device = jax.devices()[0]
  features = jax.random.normal(jax.random.key(d), (n, d), jnp.float16)
  centroids = jax.random.normal(jax.random.key(k), (k, d)) / 2
  return jax.device_put(features, device), jax.device_put(centroids, device)


def _programs(features, centroids, tiny: bool) -> dict[str, float]:
  """Returns the milliseconds of an assignment and of a Lloyd iteration."""
  mesh, n = MESH(), len(features)
  plan = chunks.plan(features.shape, len(centroids), mesh, in_memory=True)
  options = {"mesh": mesh, "block": plan.block}
  programs = {"assign_ms": assign.assign_chunk, "lloyd_ms": lloyd.plain}
  return {
    name: _milliseconds(lambda f=f: f(features, n, centroids, **options), tiny)
    for name, f in programs.items()
  }


@contextlib.contextmanager
def _using(assignment: str) -> Iterator[None]:
  """Compiles programs with another assignment in the block, see `kernels`."""
  chosen = os.environ.get(kernels.VARIABLE, kernels.ASSIGNMENTS[0])
  kernels.use(assignment)
  jax.clear_caches()
  try:
    yield
  finally:
    kernels.use(chosen)
    jax.clear_caches()


def clustering(tiny: bool) -> Iterator[dict]:
  """Yields, for each shape, our programs beside the bare float16 product."""
  n = 1024 if tiny else _ROWS
  for k in (20,) if tiny else _CENTROIDS:
    for d in (16,) if tiny else _DEPTHS:
      features, centroids = _arrays(n, d, k)
      row: dict[str, Any] = {"n": n, "d": d, "k": k}
      product = functools.partial(
        _product, features, centroids, dtype=jnp.float16, precision=None
      )
      row["dot_ms"] = _milliseconds(product, tiny)
      row |= _programs(features, centroids, tiny)
      with _using("fast"):
        row["fast_lloyd_ms"] = _programs(features, centroids, tiny)["lloyd_ms"]
      # Two products of float16 an assignment.
      row["tflops"] = 4e-9 * n * d * k / row["assign_ms"]
      row["of_bare_rate"] = 2 * row["dot_ms"] / row["assign_ms"]
      yield row | {"flash_kmeans_ms": _FLASH_KMEANS.get(d, {}).get(k)}


def xla(tiny: bool) -> Iterator[dict]:
  """Yields the same by XLA's own program, and bare products in float32."""
  n, d, k = (1024, 16, 20) if tiny else (_ROWS, 128, 1024)
  features, centroids = _arrays(n, d, k)
  with _using("xla"):
    row = {"d": d, "k": k} | _programs(features, centroids, tiny)
    wide = features.astype(jnp.float32)
    for name, precision in (("tf32", None), ("highest", "highest")):
      product = functools.partial(
        _product, wide, centroids, dtype=jnp.float32, precision=precision
      )
      row[f"dot_{name}_ms"] = _milliseconds(product, tiny)
  yield row


def streaming(tiny: bool) -> Iterator[dict]:
  """Yields how fast rows in the host's memory are assigned."""
  n, d, k = (2000, 16, 20) if tiny else (1 << 22, 128, 2048)
  rng = np.random.default_rng(0)
  block = rng.standard_normal((n // 16, d), np.float32).astype(np.float16)
  features = np.tile(block, (16, 1))
  centroids = rng.standard_normal((k, d), np.float32)
  device = jax.devices()[0]
  part = features[: n // 4]

  def copy_rate(array, target):
    def copy():
      jax.device_put(array, target).block_until_ready()

    return part.nbytes / min(calls.timed(copy)[0] for _ in range(3)) / 1e9

  row = {"n": n, "d": d, "k": k, "copy_gb_per_s": copy_rate(part, device)}
  if device.platform == "gpu":
    kinds = [
      jax.sharding.SingleDeviceSharding(device, memory_kind=kind)
      for kind in ("pinned_host", "device")
    ]
    pinned = jax.device_put(part, kinds[0]).block_until_ready()
    row["pinned_copy_gb_per_s"] = copy_rate(pinned, kinds[1])
  for _ in range(2):
    seconds, _ = calls.timed(lambda: assign.assign(features, centroids))
  rate = features.nbytes / seconds / 1e9
  yield row | {"assign_ms": seconds * 1e3, "gb_per_s": rate}


def encoders(tiny: bool) -> Iterator[dict]:
  """Yields images/s of encoders: on the device, and from the host's memory."""
  rng = np.random.default_rng(0)
  lite = functools.partial(efficientnet.EfficientNetLite0, 1)
  networks = (
    ("efficientnet_lite0", lite, 64, 2048),
    ("efficientnet_lite0", lite, 224, 512),
    ("resnet50", functools.partial(resnet.resnet50, 1), 224, 512),
    ("vit_s16", functools.partial(vit.VisionTransformer, patch=16), 224, 512),
  )
  for name, make, s, batch in (("hog", None, 28, 8192), *networks):
    if tiny and make:
      return
    encoder = checks.network(name, make, s) if make else registry.get(name)
    batch = 4 if tiny else batch
    images = rng.integers(256, size=(4 * batch, s, s, 3), dtype=np.uint8)
    on_device = jax.device_put(images[:batch])
    apply = functools.partial(jax.jit(encoder.apply), on_device)
    ms = _milliseconds(apply, tiny)
    encode = functools.partial(registry.encode, encoder, images, batch)
    encode()
    seconds, _ = calls.timed(encode)
    yield {
      "encoder": name,
      "size": s,
      "images_per_s": batch / ms * 1e3,
      "from_host_images_per_s": len(images) / seconds,
    }


def training(tiny: bool) -> Iterator[dict]:
  """Yields the milliseconds of a training step: of our loop, and a bare one."""
  for batch in (4,) if tiny else (64, 256):
    row: dict[str, Any] = {"images": batch}
    for name, make in (("bare", ours.bare_training), ("ours", ours.training)):
      call = make(batch)
      call()
      seconds = [call()["seconds"] for _ in range(1 if tiny else 3)]
      row[f"{name}_ms"] = float(np.median(seconds) * 1e3)
    yield row


def decompression(tiny: bool) -> Iterator[dict]:
  """Yields the seconds in which k-center takes samples from clusters."""
  n, d, r, budget = (2000, 16, 10, 50) if tiny else (1 << 20, 128, 1000, 10_000)
  rng = np.random.default_rng(0)
  features = rng.standard_normal((n, d), np.float32).astype(np.float16)
  call = ours.sample(features, r, budget)
  call()
  yield {"n": n, "d": d, "clusters": r, "samples": budget, **call()}

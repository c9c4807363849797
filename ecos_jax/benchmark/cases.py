"""Cases: which stages exist, at which shapes they run, and what a call does."""

import math
import re
from typing import NamedTuple

import numpy as np

from ecos_jax import errors

MINIBATCH = "scikit-learn-minibatch"
_KMEANS = (
  *("scikit-learn", "scikit-learn-intelex", "faiss-cpu", "fastkmeans"),
  "superkmeans",
)
DATA = ("blobs", "hog")
# How much more the long fit of `fit` computes than the short one.
_FIT_GFLOP = 700


class Stage(NamedTuple):
  """A stage of the benchmark.

  Attributes:
    example: A shape, as in --shapes.
    ours: Implementations of this package, and the limits they are held to.
    peers: Other libraries, by their names on PyPI.
    one_pass: Whether it computes each distance once.
  """

  example: str
  ours: tuple[str, ...] = ("ecos_jax",)
  peers: tuple[str, ...] = ()
  one_pass: bool = False

  @property
  def implementations(self) -> tuple[str, ...]:
    """All implementations, installed or not."""
    return self.ours + self.peers


STAGES = {
  "encode": Stage("64", peers=("onnxruntime",)),
  "assign": Stage("3000x16x20", ("ecos_jax", "gemm"), _KMEANS, one_pass=True),
  "fit": Stage("3000x16x20", ("ecos_jax", "gemm"), _KMEANS, one_pass=True),
  "converge": Stage(
    "blobs-1000x16x8",
    ("ecos_jax", "ecos_jax:minibatch"),
    (*_KMEANS, MINIBATCH),
  ),
  "stream": Stage("20000x32x10", ("ecos_jax", "memory", "gemm"), one_pass=True),
  "sample": Stage("3000x16x10x50"),
  "train": Stage("4", ("ecos_jax", "bare")),
}


class Case(NamedTuple):
  """A stage at a shape.

  Attributes:
    stage: One of `STAGES`.
    shape: Images; or n, d, k; or N, d, R, B; or images of a batch.
    data: 'blobs' or 'hog' for `converge`; empty for other stages.
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
    """2 n k d of one pass; None for a stage that is not one pass."""
    one_pass = STAGES[self.stage].one_pass
    return 2.0 * math.prod(self.shape) if one_pass else None

  @property
  def iterations(self) -> tuple[int, int]:
    """Iterations of the short and of the long fit of `fit`.

    They differ by enough work that the varying time to start a fit matters
    little, and by too few iterations to converge.
    """
    n, _, k = self.shape
    more = round(_FIT_GFLOP / (2e-9 * math.prod(self.shape)))
    return 1, 1 + max(min(more, 30, n // (5 * k)), 2)

  @property
  def counted(self) -> int:
    """Number of images, rows or chosen samples, which the rate counts."""
    return self.shape[-1 if self.stage == "sample" else 0]


class Options(NamedTuple):
  """The values of the flags, for parent and children; see their help.

  `memory_budget` is that of `stream`, in bytes.
  """

  rounds: int
  memory_budget: int
  encoder: str
  image_size: int | None = None


class Preset(NamedTuple):
  """Sizes of a run; `shapes` has those of each stage, as in --shapes."""

  rounds: int
  memory_budget: int
  shapes: dict[str, str]


PRESETS = {
  # For tests: its times mean nothing.
  "smoke": Preset(
    2, 1 << 20, {name: stage.example for name, stage in STAGES.items()}
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
      "sample": "1e6x128x1000x10000",
      "train": "64,256",
    },
  ),
}


def parse(stage: str, text: str) -> Case:
  """Returns the case of a stage and a shape such as 1e6x128x1000.

  Raises:
    ConfigError: There is no such stage, or the shape does not fit it.
  """
  if stage not in STAGES:
    raise errors.ConfigError(
      f"no stage {stage!r}: --stages and --shapes know {', '.join(STAGES)}"
    )
  example = STAGES[stage].example
  data, _, shape = text.rpartition("-")
  numbers = re.fullmatch(r"\d+(e\d+)?(x\d+(e\d+)?)*", shape)
  axes = tuple(int(float(a)) for a in shape.split("x")) if numbers else ()
  wanted = example.count("x") + 1
  valid = DATA if stage == "converge" else ("",)
  wrong = ""
  if len(axes) != wanted or 0 in axes or data not in valid:
    kinds = f", after one of {', '.join(DATA)}" if stage == "converge" else ""
    wrong = (
      f"it must be {wanted} positive numbers as in {stage}:{example}{kinds}"
    )
  elif max(axes[2:3], default=0) > axes[0]:
    wrong = "more centroids than rows"
  elif max(axes[3:], default=0) > axes[0]:
    wrong = "more samples than rows"
  if wrong:
    raise errors.ConfigError(f"--shapes={stage}:{text}: {wrong}")
  return Case(stage, axes, data)


def chosen(preset: Preset, stages: list[str], shapes: list[str]) -> list[Case]:
  """Returns the cases of a run, in the order of the stages.

  Args:
    preset: Shapes of the stages that `shapes` does not name.
    stages: Stages to run; if empty, those in `shapes`, or else all.
    shapes: STAGE:SHAPE, each in place of the preset's.

  Raises:
    ConfigError: A stage or a shape is unknown.
  """
  own: dict[str, list[Case]] = {}
  for entry in shapes:
    stage, _, shape = entry.partition(":")
    own.setdefault(stage, []).append(parse(stage, shape))
  cases = []
  for stage in stages or own or STAGES:
    texts = preset.shapes.get(stage, "").split(",")
    cases += own.get(stage) or [parse(stage, text) for text in texts]
  return cases


def images(case: Case, size: int) -> np.ndarray:
  """Returns the random images of `encode`, uint8 [n, size, size, 3]."""
  return np.random.default_rng(1).integers(
    256, size=(case.shape[0], size, size, 3), dtype=np.uint8
  )


def target(implementation: str) -> str:
  """Returns whose inertia an implementation is to reach in `converge`."""
  mini = implementation == MINIBATCH or implementation.endswith(":minibatch")
  return "minibatch" if mini else "lloyd"

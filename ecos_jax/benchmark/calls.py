"""What is timed: one call of an implementation on a case.

A call returns JSON: its seconds, and further facts. Its first run does not
count: it compiles, and finds how much work `converge` takes.
"""

from collections.abc import Callable, Sequence
import importlib
import json
from pathlib import Path
import time
from typing import Any, Protocol

import numpy as np

from ecos_jax.benchmark import cases
from ecos_jax.benchmark import machine

Call = Callable[[], dict[str, Any]]

_CHECKED_ROWS = 1000
_INERTIA_ROWS = 20_000
# `converge` gives up after a fit this many times as long as scikit-learn's.
_PATIENCE = 2.0
# The order of the sums changes an inertia by less.
_ROUNDING = 1 + 1e-6


class KMeans(Protocol):
  """An implementation of k-means.

  Attributes:
    efforts: What to try in `converge`, in order: numbers of iterations, or
      tolerances.
  """

  efforts: Sequence[Any]

  def assign(
    self, features: np.ndarray, centroids: np.ndarray
  ) -> Callable[[], np.ndarray]:
    """Returns a function that returns the labels [n]."""

  def fit(
    self, features: np.ndarray, k: int, effort: Any, init: Any = None
  ) -> np.ndarray:
    """Returns the centroids of a whole fit from its best start, [k, d].

    Args:
      features: [n, d].
      k: Number of centroids.
      effort: One of `efforts`.
      init: [k, d]; if given, `effort` iterations of Lloyd start from these
        centroids. A library that takes no start ignores them.
    """


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
  """Returns the seconds that a function took, and its result."""
  begin = time.perf_counter()
  result = function()
  return time.perf_counter() - begin, result


def inertia(features: np.ndarray, centroids: np.ndarray) -> float:
  """Returns the sum of squared distances to the nearest centroid.

  Args:
    features: float32 [n, d].
    centroids: float32 [k, d].
  """
  half_norms = np.sum(centroids**2, axis=1) / 2
  total = 0.0
  for start in range(0, len(features), 8192):
    rows = features[start : start + 8192]
    scores = np.max(rows @ centroids.T - half_norms, axis=1)
    norms = np.einsum("nd,nd->n", rows, rows)
    total += float(np.sum(norms - 2 * scores, dtype=np.float64))
  return total


def assigning(
  assign: Callable[[], np.ndarray], features: np.ndarray, centroids: np.ndarray
) -> Call:
  """Returns the call of `assign`; `correct` is its share of right labels.

  The labels of the first rows are checked in double precision.
  """
  rows = features[:_CHECKED_ROWS].astype(np.float64)
  points = centroids.astype(np.float64)
  scores = rows @ points.T - np.sum(points**2, axis=1) / 2
  truth = np.argmax(scores, axis=1)

  def call():
    seconds, labels = timed(assign)
    correct = float(np.mean(np.asarray(labels[: len(truth)]) == truth))
    return {"seconds": seconds, "correct": correct}

  return call


def converging(
  fit: Callable[[Any], np.ndarray],
  efforts: Sequence[Any],
  features: np.ndarray,
  target: float,
  patience: float,
) -> Call:
  """Returns the call of the first whole fit that reaches an inertia.

  Args:
    fit: Maps an effort to centroids.
    efforts: Tried in order by the first call; the last one tried is timed.
    features: [n, d].
    target: The inertia to reach.
    patience: Seconds of a fit after which the search ends.
  """
  found: dict[str, Any] = {}

  def call():
    if found:
      return {"seconds": timed(lambda: fit(found["effort"]))[0], **found}
    for effort in efforts:
      seconds, centroids = timed(lambda effort=effort: fit(effort))
      reached = inertia(features, centroids)
      found.update(effort=effort, inertia=reached, target=target)
      found["reached"] = reached <= target
      if found["reached"] or seconds > patience:
        break
    return {"seconds": seconds, **found}

  return call


def kmeans(
  library: KMeans,
  name: str,
  case: cases.Case,
  features: np.ndarray,
  folder: Path,
) -> Call:
  """Returns the call of `assign`, `fit` or `converge`.

  Args:
    library: What is called.
    name: Name of the implementation.
    case: What to run.
    features: [n, d].
    folder: With the data.
  """
  centroids = np.load(folder / "centroids.npy")
  k = len(centroids)
  if case.stage == "assign":
    assign = library.assign(features, centroids)
    return assigning(assign, features, centroids)
  if case.stage == "fit":
    short, long = case.iterations
    checked = features[:_INERTIA_ROWS]

    def call():
      first, _ = timed(lambda: library.fit(features, k, short, centroids))
      second, found = timed(lambda: library.fit(features, k, long, centroids))
      return {
        "seconds": (second - first) / (long - short),
        "fit_seconds": second,
        "inertia_per_row": inertia(checked, found) / len(checked),
      }

    return call
  known = json.loads((folder / "reference.json").read_text())
  mini = cases.target(name) == "minibatch"
  return converging(
    lambda effort: library.fit(features, k, effort),
    (known["iterations"],) if name == "scikit-learn" else library.efforts,
    features,
    known["minibatch"] * _ROUNDING if mini else known["lloyd"],
    _PATIENCE * known["seconds"],
  )


def start(job: dict[str, Any]) -> Callable[[None], dict[str, Any]]:
  """Returns, in a child process, what runs one call of an implementation.

  Args:
    job: `case` and `options` as tuples; `folder` with the data; `name` of the
      implementation.
  """
  case, options = cases.Case(*job["case"]), cases.Options(*job["options"])
  name, folder = job["name"], Path(job["folder"])
  library = "runtimes" if case.stage == "encode" else "peers"
  if name in cases.STAGES[case.stage].ours:
    library = "ours"
  module = importlib.import_module(f"ecos_jax.benchmark.{library}")
  module.load(name)
  # What was imported until now is not counted.
  bare = machine.resident_bytes()
  call = module.call(name, case, options, folder)

  def answer(question: None) -> dict[str, Any]:
    del question
    machine.resident_bytes()
    result = call()
    return result | {"peak_bytes": machine.peak_resident_bytes() - bare}

  return answer

"""What is timed: one call of an implementation on a cell.

A call returns its seconds and whatever else is known of it, as JSON. Its first
run is not counted: it compiles, and searches where there is something to find.
"""

from collections.abc import Callable
import json
from pathlib import Path
import time
from typing import Any

import numpy as np

from ecos_jax.benchmark import cells
from ecos_jax.benchmark import peers

Call = Callable[[], dict[str, Any]]

_CHECKED_ROWS = 1000
_INERTIA_ROWS = 20_000
# A search ends when one fit takes so many times as long as scikit-learn's.
PATIENCE = 2.0


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
  """Returns the seconds that a function took, and its result."""
  begin = time.perf_counter()
  result = function()
  return time.perf_counter() - begin, result


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
  """Returns the features [n, d] and the centroids [k, d] of a cell."""
  return np.load(folder / "features.npy"), np.load(folder / "centroids.npy")


def assigning(
  assign: Callable[[], np.ndarray], features: np.ndarray, centroids: np.ndarray
) -> Call:
  """Returns the call of `assign`; `correct` is checked in double precision."""
  rows = features[:_CHECKED_ROWS].astype(np.float64)
  points = centroids.astype(np.float64)
  scores = rows @ points.T - np.sum(points**2, axis=1) / 2
  truth = np.argmax(scores, axis=1)

  def call():
    seconds, labels = timed(assign)
    correct = float(np.mean(np.asarray(labels[: len(truth)]) == truth))
    return {"seconds": seconds, "correct": correct}

  return call


def fitting(
  fit: Callable[[int], np.ndarray],
  features: np.ndarray,
  lengths: tuple[int, int],
) -> Call:
  """Returns the call that tells the seconds of one iteration of `fit`.

  Args:
    fit: Number of iterations -> centroids.
    features: [n, d].
    lengths: Iterations of the short and of the long fit.
  """
  short, long = lengths
  checked = features[:_INERTIA_ROWS]

  def call():
    first, _ = timed(lambda: fit(short))
    second, centroids = timed(lambda: fit(long))
    return {
      "seconds": (second - first) / (long - short),
      "fit_seconds": second,
      "inertia_per_row": cells.inertia(checked, centroids) / len(checked),
    }

  return call


def converging(
  cluster: Callable[[Any], np.ndarray],
  efforts: tuple,
  features: np.ndarray,
  target: float,
  patience: float,
) -> Call:
  """Returns the call of the first whole fit that reaches an inertia.

  Args:
    cluster: Effort -> centroids.
    efforts: What to try, in order; the first call finds the one.
    features: [n, d].
    target: The inertia to reach.
    patience: Seconds of a fit after which the search ends.
  """
  found: dict[str, Any] = {}

  def call():
    if not found:
      for effort in efforts:
        seconds, centroids = timed(lambda effort=effort: cluster(effort))
        reached = cells.inertia(features, centroids)
        found.update(
          effort=effort,
          inertia=reached,
          target=target,
          reached=reached <= target,
        )
        if found["reached"] or seconds > patience:
          break
      return {"seconds": seconds, **found}
    seconds, _ = timed(lambda: cluster(found["effort"]))
    return {"seconds": seconds, **found}

  return call


def reference(folder: Path) -> dict[str, Any]:
  """Returns what `cells.prepare` measured of scikit-learn."""
  return json.loads((folder / "reference.json").read_text())


def peer_call(
  name: str, cell: cells.Cell, options: cells.Options, folder: Path
) -> Call:
  """Returns the call of a peer.

  Args:
    name: On PyPI.
    cell: What to run.
    options: Of the run.
    folder: With the data.
  """
  peer = peers.get(name)
  features, centroids = load(folder)
  k = len(centroids)
  if cell.stage == "assign":
    return assigning(peer.assign(features, centroids), features, centroids)
  if cell.stage == "fit":
    return fitting(
      lambda iterations: peer.fit(features, centroids, iterations),
      features,
      cell.lengths,
    )
  known = reference(folder)
  efforts = peer.efforts
  if name == "scikit-learn":
    efforts = (known["iterations"],)
  mini = name == peers.MINIBATCH
  return converging(
    lambda iterations: peer.cluster(features, k, iterations),
    efforts,
    features,
    # Rounding of another order of sums is no miss.
    known["minibatch"] * (1 + 1e-6) if mini else known["lloyd"],
    PATIENCE * known["seconds"],
  )

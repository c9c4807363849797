"""The metrics that a study shows: where a trial's row has them, and their form.

The standard deviation is that of a sample (n - 1).
"""

from typing import Any, NamedTuple


class Metric(NamedTuple):
  """One number of a trial.

  Attributes:
    label: Text of a column or an axis.
    path: Where it is in the row of a trial, dotted.
    form: Format specification.
    scale: Factor by which it is multiplied to be shown.
  """

  label: str
  path: str
  form: str = ",.0f"
  scale: float = 1

  def of(self, row: dict[str, Any]) -> float | None:
    """Returns the scaled value in a row; None if it has none."""
    value: Any = row
    for step in self.path.split("."):
      value = (value or {}).get(step)
    return None if value is None else self.scale * float(value)


def _percent(label: str, path: str) -> Metric:
  return Metric(f"{label} %", path, ".1f", 100)


METRICS = {
  "accuracy": _percent("accuracy", "summary.accuracy"),
  "linear": _percent("linear accuracy", "simulation.linear"),
  "mean_client": _percent("mean client", "simulation.mean_client"),
  "worst_client": _percent("worst client", "simulation.worst_client"),
  "members": Metric("clients", "simulation.members"),
  "grouping": Metric("Rand index", "simulation.grouping", ".2f"),
  "signal": _percent("signal", "summary.clients.signal"),
  "share": _percent("share", "summary.proxy_client_share"),
  "epsilon": Metric("epsilon", "summary.noise_epsilon", ".3g"),
  "teacher": _percent("teacher", "summary.teacher.accuracy"),
  "answered": Metric("answered", "summary.labels_answered"),
  "labels_right": _percent("answers right", "summary.labels_accuracy"),
  "bytes_down": Metric("ECOS down", "summary.bytes_down"),
  "bytes_up": Metric("ECOS up", "summary.bytes_up"),
  "distance": Metric("MMD² x 1000", "simulation.distance", ".2f", 1000),
  "upload": Metric("upload, pixels", "simulation.upload"),
  "download": Metric("download, pixels", "simulation.download"),
  "upload_files": Metric("upload, PNG", "simulation.upload_files"),
  "download_files": Metric("download, PNG", "simulation.download_files"),
  "client_multiply_adds": Metric(
    "client's multiply-adds", "simulation.client_multiply_adds", ".2g"
  ),
}


def label(name: str) -> str:
  """Returns what to call a metric, or a field by its dotted name."""
  return METRICS[name].label if name in METRICS else name.rpartition(".")[2]

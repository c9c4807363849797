"""The figures that a study shows: where they stand in a cell's row, and how.

The standard deviation is that of a sample (n - 1).
"""

from typing import Any, NamedTuple


class Figure(NamedTuple):
  """One figure of a cell.

  Attributes:
    label: Of a column or an axis.
    path: Where it stands in the row of a cell, dotted.
    form: How it is written.
    scale: What it is multiplied by before.
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

  def text(self, value: float) -> str:
    """Returns a value as it is written."""
    return format(value, self.form)


def _percent(label: str, path: str) -> Figure:
  return Figure(f"{label} %", path, ".1f", 100)


FIGURES = {
  "accuracy": _percent("accuracy", "summary.accuracy"),
  "share": _percent("share", "summary.proxy_client_share"),
  "pool_share": _percent("share in the pool", "summary.pool_client_share"),
  "proxy_size": Figure("size", "summary.proxy_size"),
  "epsilon": Figure("epsilon", "summary.noise_epsilon", ".3g"),
  "teacher": _percent("teacher", "summary.teacher.accuracy"),
  "answered": Figure("answered", "summary.labels_answered"),
  "labels_right": _percent("answers right", "summary.labels_accuracy"),
  "bytes_down": Figure("ECOS down", "summary.bytes_down"),
  "bytes_up": Figure("ECOS up", "summary.bytes_up"),
  "distance": Figure("MMD² x 1000", "simulation.distance", ".2f", 1000),
  "upload": Figure("upload, pixels", "simulation.upload"),
  "download": Figure("download, pixels", "simulation.download"),
  "upload_files": Figure("upload, PNG", "simulation.upload_files"),
  "download_files": Figure("download, PNG", "simulation.download_files"),
  "client_multiply_adds": Figure(
    "client's multiply-adds", "simulation.client_multiply_adds", ".2g"
  ),
  "seconds": Figure("seconds", "seconds", ".1f"),
}

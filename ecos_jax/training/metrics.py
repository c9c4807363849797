"""Metrics of a run: JSON lines for programs, TensorBoard for people."""

import json
from pathlib import Path
from typing import Any

import tensorboardX

from ecos_jax import files

FILE = "metrics.jsonl"


def _kept(path: Path, step: int) -> list[str]:
  """Returns the whole lines up to `step`; a crash may cut off the last."""
  lines = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        row = json.loads(line)
      except ValueError:
        break
      if row["step"] > step:
        break
      lines.append(line + "\n")
  return lines


class Writer:
  """Writes a row of numbers for a step; a resumed run repeats none."""

  def __init__(self, directory: Path, step: int):
    """Opens the files, and drops rows of steps after `step`.

    Args:
      directory: Gets `metrics.jsonl` and TensorBoard's event files.
      step: The last step that is not repeated; 0 for a new run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    files.write(path, "".join(_kept(path, step)).encode())
    self._file = path.open("a")
    self._board = tensorboardX.SummaryWriter(
      str(directory), purge_step=step + 1
    )

  def __enter__(self) -> "Writer":
    """Returns itself."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Closes the files."""
    self._file.close()
    self._board.close()

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one row: the step and the values by name."""
    row: dict[str, Any] = {"step": step, **values}
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

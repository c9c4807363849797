"""A benchmark from cells to rows: data, child processes, progress, the file."""

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any

import tqdm

from ecos_jax import files
from ecos_jax.benchmark import cells as cells_lib
from ecos_jax.benchmark import machine
from ecos_jax.benchmark import peers
from ecos_jax.benchmark import report
from ecos_jax.benchmark import timing

_PACKAGES = ("ecos_jax", "jax", "jaxlib", "numpy")
_OURS = {
  "assign": ["ecos_jax", "gemm"],
  "fit": ["ecos_jax", "gemm"],
  "converge": ["ecos_jax", "ecos_jax:minibatch"],
  "stream": ["ecos_jax", "memory", "gemm"],
  "coverage": ["ecos_jax", "gemm"],
  "train": ["ecos_jax", "bare"],
}
_WITH_PEERS = ("assign", "fit", "converge")


def implementations(stage: str) -> list[str]:
  """Returns the names of what runs a stage, peers installed or not."""
  names = _OURS.get(stage, ["ecos_jax"])
  if stage in _WITH_PEERS:
    names = names + [
      name
      for name in peers.NAMES
      if name != peers.MINIBATCH or stage == "converge"
    ]
  return names


class Run:
  """One benchmark.

  Attributes:
    device: What it runs on (`machine.describe`).
    rows: The rows so far.
    skipped: What was not run, and why.
  """

  def __init__(
    self,
    cells: Sequence[cells_lib.Cell],
    options: cells_lib.Options,
    *,
    only: Sequence[str],
    scratch: Path | None,
    output: Path,
    say: Callable[[str], None] = print,
  ):
    """Describes the machine.

    Args:
      cells: What to run.
      options: How.
      only: Implementations to run; none: all that are installed.
      scratch: Where data lie meanwhile; None for the system's place.
      output: The JSON file.
      say: Prints a line.
    """
    self._cells = cells
    self._options = options
    self._only = only
    self._scratch = scratch
    self._output = output
    self._say = say
    self._environment = machine.environment(os.environ, options.devices)
    self.device = timing.once({"task": "describe"}, self._environment)
    self.rows: list[dict[str, Any]] = []
    self.skipped: list[dict[str, str]] = []

  def _write(self, *, complete: bool, rows: list[dict[str, Any]]) -> None:
    files.write_json(
      self._output,
      {
        "device": self.device,
        "versions": machine.versions((*_PACKAGES, *peers.NAMES)),
        "options": self._options._asdict(),
        "complete": complete,
        "rows": rows,
        "skipped": self.skipped,
      },
    )

  def _skip(self, cell: cells_lib.Cell, name: str, reason: str) -> None:
    self.skipped.append(
      {
        "stage": cell.stage,
        "shape": cell.name,
        "implementation": name,
        "reason": reason,
      }
    )
    self._say(f"{cell.stage} {cell.name}: {name} is left out: {reason}")

  def _names(self, cell: cells_lib.Cell) -> list[str]:
    names = []
    for name in implementations(cell.stage):
      if self._only and name.partition(":")[0] not in self._only:
        continue
      if name in peers.NAMES and not peers.installed(name):
        self._skip(cell, name, "not installed: pip install ecos_jax[bench]")
      else:
        names.append(name)
    return names

  def _jobs(
    self, cell: cells_lib.Cell, names: list[str], folder: Path
  ) -> list[dict[str, Any]]:
    ours = [name for name in names if name not in peers.NAMES]
    # A process each; but one TPU serves one process.
    groups = (
      [ours] if self.device["platform"] == "tpu" else [[name] for name in ours]
    )
    groups += [[name] for name in names if name in peers.NAMES]
    job = cell._asdict() | {
      "task": "call",
      "options": self._options._asdict(),
      "folder": str(folder),
    }
    return [job | {"names": group} for group in groups if group]

  def _rows(self, cell: cells_lib.Cell, results: dict[str, list]) -> list:
    rows = [
      report.row(
        cell,
        name,
        found,
        devices=0 if name in peers.NAMES else self.device["devices"],
      )
      for name, found in results.items()
      if found
    ]
    peak = self.device["peak_bf16_flops"]
    report.complete(
      rows,
      self.device["gemm_gflops"],
      peak and peak * self.device["devices"],
    )
    return rows

  def _cell(
    self,
    cell: cells_lib.Cell,
    names: list[str],
    folder: Path,
    progress: tqdm.tqdm,
  ) -> None:
    progress.set_description(f"{cell.stage} {cell.name}")
    prepare = cell._asdict() | {
      "task": "prepare",
      "options": self._options._asdict(),
      "folder": str(folder),
    }
    try:
      timing.once(prepare, self._environment)
    except timing.WorkerError as error:
      self._skip(cell, "all", f"no data: {error}")
      return
    results: dict[str, list] = {name: [] for name in names}
    jobs = self._jobs(cell, names, folder)
    for name, i, result in timing.rounds(
      jobs, self._environment, self._options.rounds
    ):
      if isinstance(result, timing.WorkerError):
        results[name] = []
        self._skip(cell, name, str(result))
        continue
      progress.update(cell.work)
      if i:
        results[name].append(result)
        # A run that is cut off leaves the rounds so far.
        self._write(complete=False, rows=self.rows + self._rows(cell, results))
    rows = self._rows(cell, results)
    self.rows += rows
    if rows:
      self._say(report.table(rows) + "\n")

  def all(self) -> None:
    """Runs every cell, and leaves the JSON file.

    Raises:
      EcosError: The machine cannot run JAX.
    """
    todo = [(cell, self._names(cell)) for cell in self._cells]
    calls = self._options.rounds + 1
    total = sum(cell.work * len(names) * calls for cell, names in todo)
    self._write(complete=False, rows=[])
    with tqdm.tqdm(
      total=total,
      disable=None,
      bar_format="{desc} |{bar}| {percentage:.0f} % [{elapsed}<{remaining}]",
    ) as progress:
      for cell, names in todo:
        folder = Path(tempfile.mkdtemp(prefix="ecos_jax-", dir=self._scratch))
        try:
          self._cell(cell, names, folder, progress)
        finally:
          shutil.rmtree(folder)
    self._write(complete=True, rows=self.rows)

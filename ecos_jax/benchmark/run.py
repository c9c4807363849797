"""A benchmark, from its cases to the rows in a JSON file."""

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any

import tqdm

from ecos_jax import children
from ecos_jax import files
from ecos_jax.benchmark import cases as cases_lib
from ecos_jax.benchmark import machine
from ecos_jax.benchmark import peers
from ecos_jax.benchmark import rows as rows_lib
from ecos_jax.benchmark import timing

_PACKAGES = ("ecos_jax", "jax", "jaxlib", "numpy")
_PEAK_SECONDS = 2.0


class Run:
  """One benchmark.

  Attributes:
    device: What it runs on (`machine.describe`).
    rows: The rows so far.
    skipped: What was not run, and why.
  """

  def __init__(
    self,
    cases: Sequence[cases_lib.Case],
    options: cases_lib.Options,
    *,
    only: Sequence[str],
    scratch: Path | None,
    output: Path,
    say: Callable[[str], None] = print,
  ):
    """Describes the machine.

    Args:
      cases: What to run.
      options: How.
      only: Implementations to run; if empty, all that are installed.
      scratch: Folder for the data meanwhile; None for the system's.
      output: The JSON file.
      say: Prints a line.

    Raises:
      ChildError: The machine cannot run JAX.
    """
    self._cases = cases
    self._options = options
    self._only = only
    self._scratch = scratch
    self._output = output
    self._say = say
    self._environment = machine.environment(os.environ, options.devices)
    self.device = children.once(
      "ecos_jax.benchmark.machine:describe", _PEAK_SECONDS, self._environment
    )
    self.rows: list[dict[str, Any]] = []
    self.skipped: list[dict[str, str]] = []

  def all(self) -> None:
    """Runs every case, and leaves the JSON file."""
    todo = [(case, self._names(case)) for case in self._cases]
    calls = sum(len(names) for _, names in todo) * (self._options.rounds + 1)
    self._write(complete=False, rows=[])
    with tqdm.tqdm(total=calls, unit="call", disable=None) as progress:
      for case, names in todo:
        progress.set_description(f"{case.stage} {case.name}")
        folder = Path(tempfile.mkdtemp(prefix="ecos_jax-", dir=self._scratch))
        try:
          self._case(case, names, folder, progress)
        finally:
          shutil.rmtree(folder)
    self._write(complete=True, rows=self.rows)

  def _names(self, case: cases_lib.Case) -> list[str]:
    """Returns the implementations to run; tells which are not installed."""
    stage, names = cases_lib.STAGES[case.stage], []
    for name in stage.implementations:
      if self._only and name.partition(":")[0] not in self._only:
        continue
      if name in stage.peers and not peers.installed(name):
        self._skip(case, name, "not installed: pip install 'ecos_jax[bench]'")
      else:
        names.append(name)
    return names

  def _case(
    self,
    case: cases_lib.Case,
    names: list[str],
    folder: Path,
    progress: tqdm.tqdm,
  ) -> None:
    job = {"case": case, "options": self._options, "folder": str(folder)}
    if case.bytes is not None:
      try:
        prepare = "ecos_jax.benchmark.data:prepare"
        children.once(prepare, job, self._environment)
      except children.ChildError as error:
        self._skip(case, "all", f"no data: {error}")
        return
    results: dict[str, list] = {name: [] for name in names}
    jobs = [job | {"names": group} for group in self._groups(case, names)]
    for name, i, result in timing.rounds(
      jobs, self._environment, self._options.rounds
    ):
      if isinstance(result, children.ChildError):
        results[name] = []
        self._skip(case, name, str(result))
        continue
      progress.update()
      if i:
        results[name].append(result)
        # An interrupted run leaves the rounds so far.
        self._write(complete=False, rows=self.rows + self._rows(case, results))
    rows = self._rows(case, results)
    self.rows += rows
    if rows:
      self._say(rows_lib.table(rows) + "\n")

  def _groups(self, case: cases_lib.Case, names: list[str]) -> list[list[str]]:
    """Returns the implementations of each child process: one, mostly."""
    if self.device["platform"] != "tpu":
      return [[name] for name in names]
    # One TPU serves one process.
    peers = cases_lib.STAGES[case.stage].peers
    ours = [name for name in names if name not in peers]
    groups = [ours, *([name] for name in names if name in peers)]
    return [group for group in groups if group]

  def _rows(self, case: cases_lib.Case, results: dict[str, list]) -> list:
    peers = cases_lib.STAGES[case.stage].peers
    devices = self.device["devices"]
    rows = [
      rows_lib.row(case, name, found, devices=0 if name in peers else devices)
      for name, found in results.items()
      if found
    ]
    peak = self.device["peak_bf16_flops"]
    chips = peak and peak * devices
    rows_lib.complete(rows, self.device["gemm_gflops"], chips)
    return rows

  def _skip(self, case: cases_lib.Case, name: str, reason: str) -> None:
    self.skipped.append(
      {
        "stage": case.stage,
        "shape": case.name,
        "implementation": name,
        "reason": reason,
      }
    )
    self._say(f"{case.stage} {case.name}: {name} is left out: {reason}")

  def _write(self, *, complete: bool, rows: list[dict[str, Any]]) -> None:
    libraries = {n for stage in cases_lib.STAGES.values() for n in stage.peers}
    files.write_json(
      self._output,
      {
        "device": self.device,
        "versions": machine.versions((*_PACKAGES, *sorted(libraries))),
        "options": self._options._asdict(),
        "complete": complete,
        "rows": rows,
        "skipped": self.skipped,
      },
    )

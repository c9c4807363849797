"""A benchmark, from its cases to the rows in a JSON file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
from pathlib import Path
import tempfile
from typing import Any

import tqdm

from ecos_jax import children
from ecos_jax import files
from ecos_jax.benchmark import cases as cases_lib
from ecos_jax.benchmark import machine
from ecos_jax.benchmark import peers
from ecos_jax.benchmark import rows as rows_lib

_ENCODER_OF_PEERS = "efficientnet_lite0"
_PACKAGES = ("ecos_jax", "jax", "jaxlib", "numpy")
_PEAK_SECONDS = 2.0


def rounds(
  job: Mapping[str, Any],
  names: Sequence[str],
  environment: Mapping[str, str],
  count: int,
) -> Iterator[tuple[str, int, dict[str, Any] | children.ChildError]]:
  """Yields (implementation, round, result); every round calls all of them.

  Each implementation has a child process (`calls.start`), which is paused
  between its calls. Each round begins with another one. Round 0 does not count.
  An implementation that fails yields its error, and is not called again.

  Args:
    job: The children's job, without `name`.
    names: The implementations.
    environment: Environment variables of the processes.
    count: Rounds that count.
  """
  with contextlib.ExitStack() as stack:
    todo: dict[str, children.Child] = {}
    for name in names:
      try:
        child = children.Child(
          "ecos_jax.benchmark.calls:start",
          {**job, "name": name},
          environment=environment,
        )
      except children.ChildError as error:
        yield name, 0, error
        continue
      stack.callback(child.close)
      child.pause()
      todo[name] = child
    for i in range(count + 1):
      order = [*todo]
      turn = i % max(len(order), 1)
      for name in order[turn:] + order[:turn]:
        child = todo[name]
        child.resume()
        try:
          result = child.call(None)
        except children.ChildError as error:
          del todo[name]
          result = error
        else:
          child.pause()
        yield name, i, result


@dataclasses.dataclass
class Run:
  """One benchmark.

  Attributes:
    cases: What to run.
    options: How.
    only: Implementations to run; if empty, all that are installed.
    output: The JSON file.
    say: Prints a line.
    rows: The rows so far.
    skipped: What was not run, and why.
  """

  cases: Sequence[cases_lib.Case]
  options: cases_lib.Options
  only: Sequence[str]
  output: Path
  say: Callable[[str], None]
  rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)

  @functools.cached_property
  def _environment(self) -> dict[str, str]:
    return machine.environment(os.environ)

  @functools.cached_property
  def device(self) -> dict[str, Any]:
    """The machine, as `machine.describe` returns it."""
    describe = "ecos_jax.benchmark.machine:describe"
    return children.once(describe, _PEAK_SECONDS, self._environment)

  def all(self) -> None:
    """Runs every case, and leaves the JSON file."""
    todo = [(case, self._names(case)) for case in self.cases]
    calls = sum(len(names) for _, names in todo) * (self.options.rounds + 1)
    self._write(complete=False, rows=[])
    with tqdm.tqdm(total=calls, unit="call", disable=None) as bar:
      for case, names in todo:
        bar.set_description(f"{case.stage} {case.name}")
        with tempfile.TemporaryDirectory() as folder:
          self._case(case, names, folder, bar)
    self._write(complete=True, rows=self.rows)

  def _names(self, case: cases_lib.Case) -> list[str]:
    """Returns the implementations to run; tells which are not installed."""
    stage, names = cases_lib.STAGES[case.stage], []
    other_encoder = self.options.encoder != _ENCODER_OF_PEERS
    for name in stage.implementations:
      if self.only and name.partition(":")[0] not in self.only:
        continue
      if name in stage.peers and not peers.installed(name):
        self._skip(case, name, "not installed: pip install 'ecos_jax[bench]'")
      elif case.stage == "encode" and name in stage.peers and other_encoder:
        self._skip(case, name, f"it is for --encoder={_ENCODER_OF_PEERS}")
      else:
        names.append(name)
    return names

  def _case(
    self, case: cases_lib.Case, names: list[str], folder: str, bar: tqdm.tqdm
  ) -> None:
    job = {"case": case, "options": self.options, "folder": folder}
    if len(case.shape) > 1:  # Not for images, which each child makes.
      try:
        prepare = "ecos_jax.benchmark.data:prepare"
        children.once(prepare, job, self._environment)
      except children.ChildError as error:
        self._skip(case, "all", f"no data: {error}")
        return
    results: dict[str, list] = {name: [] for name in names}
    for name, i, result in rounds(
      job, names, self._environment, self.options.rounds
    ):
      if isinstance(result, children.ChildError):
        results[name] = []
        self._skip(case, name, str(result))
        continue
      bar.update()
      if i:
        results[name].append(result)
        # An interrupted run leaves the rounds so far.
        self._write(complete=False, rows=self.rows + self._rows(case, results))
    rows = self._rows(case, results)
    self.rows += rows
    if rows:
      self.say(rows_lib.table(rows) + "\n")

  def _rows(self, case: cases_lib.Case, results: dict[str, list]) -> list:
    peers = cases_lib.STAGES[case.stage].peers
    devices = self.device["devices"]
    rows = [
      rows_lib.row(case, name, found, devices=0 if name in peers else devices)
      for name, found in results.items()
      if found
    ]
    rows_lib.complete(rows, self.device["gemm_gflops"])
    return rows

  def _skip(self, case: cases_lib.Case, name: str, reason: str) -> None:
    place = {"stage": case.stage, "shape": case.name, "implementation": name}
    self.skipped.append({**place, "reason": reason})
    self.say(f"{case.stage} {case.name}: {name} is left out: {reason}")

  def _write(self, *, complete: bool, rows: list[dict[str, Any]]) -> None:
    libraries = {n for stage in cases_lib.STAGES.values() for n in stage.peers}
    files.write_json(
      self.output,
      {
        "device": self.device,
        "versions": machine.versions((*_PACKAGES, *sorted(libraries))),
        "options": self.options._asdict(),
        "complete": complete,
        "rows": rows,
        "skipped": self.skipped,
      },
    )

"""A study while it goes: cells that are left, workers, failures, progress.

The parent alone writes the row of a cell (`row.json`) or its failure
(`failure.json`), each atomically and after all else of the cell. So whatever is
killed at whatever moment, a cell is done, or goes on at the next call.
"""

from collections.abc import Collection, Sequence
import contextlib
import datetime
import json
import os
from pathlib import Path
import queue
import subprocess
import sys
import threading
from typing import Any

import tqdm

from ecos_jax import cli
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.benchmark import machine
from ecos_jax.study import plan

ROW = "row.json"
FAILURE = "failure.json"
_PACKAGES = ("ecos_jax", "jax", "flax", "optax", "numpy")
_WORKER_BYTES = 2 << 30
_THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR")


def folder(workdir: Path, cell: plan.Cell) -> Path:
  """Returns the working directory of a cell."""
  return workdir / "cells" / cell.name


def _read(path: Path) -> dict[str, Any] | None:
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except ValueError:
    raise errors.EcosError(
      f"{path} is damaged: delete it to run its cell again"
    ) from None


def row(workdir: Path, cell: plan.Cell) -> dict[str, Any] | None:
  """Returns the row of a cell that is done.

  Raises:
    EcosError: It was done with another configuration, or its row is damaged.
  """
  path = folder(workdir, cell) / ROW
  found = _read(path)
  if found is None:
    return None
  now = json.loads(json.dumps(config_lib.flatten(cell.config)))
  different = [
    f"--config.{name} was {found['config'][name]}, now is {value}"
    for name, value in now.items()
    if found["config"].get(name, value) != value
  ]
  if different:
    raise errors.ConfigError(
      f"{path.parent} was made otherwise: {', '.join(different)}; take another "
      "--workdir, or delete the folder"
    )
  return found


def failure(workdir: Path, cell: plan.Cell) -> dict[str, Any] | None:
  """Returns how a cell failed; None if it did not."""
  return _read(folder(workdir, cell) / FAILURE)


def workers() -> int:
  """Returns how many processes run at once: one a core, as memory allows.

  An accelerator serves one process.
  """
  told = subprocess.run(
    [sys.executable, "-c", "import jax; print(jax.default_backend())"],
    capture_output=True,
    text=True,
    check=False,
  )
  if told.stdout.strip() != "cpu":
    return 1
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  with contextlib.suppress(OSError):
    for line in Path("/proc/meminfo").read_text().splitlines():
      if line.startswith("MemAvailable"):
        memory = int(line.split()[1]) << 10
  return max(1, min(machine.cores(), memory // _WORKER_BYTES))


class _LostError(Exception):
  """A worker that ended before its cell did."""


class _Worker:
  """A child process that runs cells; on one core if it is one of several."""

  def __init__(self, workdir: Path, number: int, count: int):
    logs = workdir / "logs"
    logs.mkdir(exist_ok=True)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", workdir / "compiled")
    environment = os.environ | {
      # Its own: JAX does not write the entries atomically.
      "JAX_COMPILATION_CACHE_DIR": f"{cache}-study-{number}",
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    core = ""
    if count > 1:
      environment |= {f"{name}_NUM_THREADS": "1" for name in _THREADS}
      if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        core = str(cores[number % len(cores)])
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "ecos_jax.study.worker"]
    with (logs / f"worker-{number}.txt").open("a") as log:
      self._process = subprocess.Popen(
        [*command, str(writing), str(workdir), core],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        pass_fds=[writing],
        env=environment,
        text=True,
      )
    os.close(writing)
    self._replies = os.fdopen(reading)

  def call(self, order: dict[str, Any]) -> dict[str, Any]:
    """Returns what the worker says of a cell.

    Raises:
      _LostError: It ended.
    """
    assert self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(order) + "\n")
      self._process.stdin.flush()
    line = self._replies.readline()
    if not line:
      code = self._process.wait()
      how = f"signal {-code}" if code < 0 else f"exit code {code}"
      hint = ": perhaps it was out of memory" if code == -9 else ""
      raise _LostError(f"the worker process ended with {how}{hint}")
    return json.loads(line)

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()
    assert self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._replies.close()


class _Todo:
  """The cells that are left, each worker's next one with the data it has."""

  def __init__(self, cells: Sequence[plan.Cell]):
    self._cells = list(cells)
    self._lock = threading.Lock()
    self._held: dict[int, str] = {}

  def take(self, number: int) -> plan.Cell | None:
    """Returns the next cell of a worker; None when all are taken."""
    with self._lock:
      others = {v for k, v in self._held.items() if k != number}

      def order(cell: plan.Cell) -> int:
        if cell.pool == self._held.get(number):
          return 0
        return 2 if cell.pool in others else 1

      if not self._cells:
        return None
      cell = min(self._cells, key=order)  # the first of the best
      self._cells.remove(cell)
      self._held[number] = cell.pool
      return cell


def _serve(
  workdir: Path,
  number: int,
  count: int,
  todo: _Todo,
  wanted: Collection[str],
  done: queue.Queue,
) -> None:
  """Runs cells in a worker, and in a new one when it is lost, to the end.

  The thread lives as long as its worker: Linux ends a child with the thread
  that started it.
  """
  worker = None
  try:
    while (cell := todo.take(number)) is not None:
      worker = worker or _Worker(workdir, number, count)
      order = {
        "name": cell.name,
        "config": config_lib.flatten(cell.config),
        "wanted": sorted(wanted),
      }
      try:
        reply = worker.call(order)
      except _LostError as error:
        worker.close()
        worker, reply = None, {"error": str(error), "seconds": None}
      if "error" in reply:
        reply["error"] = cli.with_flags(str(reply["error"]))
      done.put((cell, reply))
  finally:
    if worker is not None:
      worker.close()
    done.put(None)


def run(
  study: plan.Study,
  cells: Sequence[plan.Cell],
  workdir: Path,
  count: int | None = None,
) -> None:
  """Runs the cells that are not done, failed ones again.

  Args:
    study: What they are of.
    cells: Those to look at.
    workdir: Of the study, locked by the caller.
    count: How many processes; by default as many as `workers` says.

  Raises:
    EcosError: A cell was done with another configuration.
  """
  left = [cell for cell in cells if row(workdir, cell) is None]
  if not left:
    return
  where = {
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "versions": machine.versions(_PACKAGES),
    "machine": f"{machine.processor()}, cores: {machine.cores()}",
  }
  done: queue.Queue = queue.Queue()
  todo = _Todo(left)
  count = min(count or workers(), len(left))
  for number in range(count):
    arguments = (workdir, number, count, todo, study.figures(), done)
    threading.Thread(target=_serve, args=arguments, daemon=True).start()
  estimate = _Estimate(left, count)
  total, running, ended = len(cells), count, len(cells) - len(left)
  with tqdm.tqdm(
    total=total,
    initial=ended,
    desc="cells",
    disable=None,
    bar_format="{desc} |{bar}| {n}/{total} [{elapsed}{postfix}]",
  ) as bar:
    while running:
      if (reply := done.get()) is None:
        running -= 1
        continue
      cell, outcome = reply
      _keep(study, cell, workdir, outcome, where)
      estimate.add(cell, outcome["seconds"])
      ended += 1
      bar.update()
      bar.set_postfix_str(f"{estimate.text()} left")
      left_text = f"about {estimate.text()} left"
      tqdm.tqdm.write(f"[{ended}/{total}] {_line(cell, outcome)}; {left_text}")


def _keep(
  study: plan.Study,
  cell: plan.Cell,
  workdir: Path,
  outcome: dict[str, Any],
  where: dict[str, Any],
) -> None:
  path = folder(workdir, cell)
  path.mkdir(parents=True, exist_ok=True)
  if "error" in outcome:
    lone = plan.command(study, cell, Path("runs") / "cell")
    files.write_json(path / FAILURE, outcome | {"command": lone})
    return
  (path / FAILURE).unlink(missing_ok=True)
  files.write_json(
    path / ROW,
    {
      "name": cell.name,
      "values": cell.values,
      "config": config_lib.flatten(cell.config),
      **outcome,
      **where,
    },
  )


def _line(cell: plan.Cell, outcome: dict[str, Any]) -> str:
  if "error" in outcome:
    return f"{cell.name} FAILED: {outcome['error']}"
  accuracy = outcome["summary"]["accuracy"]
  told = "" if accuracy is None else f" {100 * accuracy:.1f} %"
  return f"{cell.name}{told} {outcome['seconds']:.0f} s"


class _Estimate:
  """How long the rest will take, by the time of cells of the same method."""

  def __init__(self, cells: Sequence[plan.Cell], workers: int):
    self._left = list(cells)
    self._workers = workers
    self._seconds: dict[str, list[float]] = {}

  def add(self, cell: plan.Cell, seconds: float | None) -> None:
    """Counts a cell as done; None where its time is not known."""
    self._left.remove(cell)
    if seconds is not None:
      self._seconds.setdefault(self._kind(cell), []).append(seconds)

  def text(self) -> str:
    """Returns the time that is left, as in '12 min'."""
    means = {kind: sum(s) / len(s) for kind, s in self._seconds.items()}
    if not means:
      return "?"
    overall = sum(means.values()) / len(means)
    seconds = sum(means.get(self._kind(c), overall) for c in self._left)
    seconds /= self._workers
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"

  def _kind(self, cell: plan.Cell) -> str:
    return cell.config.sampling.method.value

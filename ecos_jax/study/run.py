"""Runs a study: the trials that are left, in child processes, with progress.

Only the parent writes the row of a trial (`row.json`) or its failure
(`failure.json`), atomically and after all other files of the trial. So at
whatever moment a process is killed, a trial is done, or goes on at the next
call.
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

from ecos_jax import children
from ecos_jax import cli
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.benchmark import machine
from ecos_jax.study import plan

ROW = "row.json"
FAILURE = "failure.json"
_PACKAGES = ("ecos_jax", "jax", "flax", "optax", "numpy")
_CHILD_BYTES = 2 << 30
_THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR")


def folder(workdir: Path, trial: plan.Trial) -> Path:
  """Returns the working directory of a trial."""
  return workdir / "trials" / trial.name


def _read(path: Path) -> dict[str, Any] | None:
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except ValueError:
    raise errors.EcosError(
      f"{path} is damaged: delete it to run its trial again"
    ) from None


def row(workdir: Path, trial: plan.Trial) -> dict[str, Any] | None:
  """Returns the row of a trial; None unless it is done.

  Raises:
    EcosError: It was done with another configuration, or its row is damaged.
  """
  path = folder(workdir, trial) / ROW
  found = _read(path)
  if found is None:
    return None
  now = config_lib.flatten(trial.config)
  different = [
    f"`{name}` was {found['config'][name]}, now is {value}"
    for name, value in now.items()
    if found["config"].get(name, value) != value
  ]
  if different:
    raise errors.ConfigError(
      f"{path.parent} was made otherwise: {', '.join(different)}; take another "
      "`workdir`, or delete the folder"
    )
  return found


def failure(workdir: Path, trial: plan.Trial) -> dict[str, Any] | None:
  """Returns how a trial failed; None if it did not."""
  return _read(folder(workdir, trial) / FAILURE)


def listing(study: plan.Study, workdir: Path) -> str:
  """Returns a line for each trial: done, failed and why, or left."""
  lines, done, failed = [], 0, 0
  trials = study.trials()
  for trial in trials:
    if (found := row(workdir, trial)) is not None:
      done += 1
      state = f"done, {found['seconds']:.0f} s"
    elif (found := failure(workdir, trial)) is not None:
      failed += 1
      state = f"FAILED: {found['error']}"
    else:
      state = "left"
    lines.append(f"{trial.name}  {state}")
  left = len(trials) - done - failed
  lines.append(
    f"{len(trials)} trials: {done} done, {failed} failed, {left} left"
  )
  return "\n".join(lines)


def _processes() -> int:
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
  return max(1, min(machine.cores(), memory // _CHILD_BYTES))


def _child(workdir: Path, number: int, count: int) -> children.Child:
  """Starts a child process, which stays on one core if there are several."""
  logs = workdir / "logs"
  logs.mkdir(exist_ok=True)
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", workdir / "compiled")
  environment = os.environ | {
    # Its own: JAX does not write the entries atomically.
    "JAX_COMPILATION_CACHE_DIR": f"{cache}-study-{number}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  core = None
  if count > 1:
    environment |= {f"{name}_NUM_THREADS": "1" for name in _THREADS}
    if sys.platform == "linux":
      cores = sorted(os.sched_getaffinity(0))
      core = cores[number % len(cores)]
  return children.Child(
    "ecos_jax.study.trial:start",
    {"workdir": str(workdir), "core": core},
    environment=environment,
    log=(logs / f"worker-{number}.txt").open("a+b"),
  )


class _Todo:
  """The trials that are left; a child gets those with the data that it has."""

  def __init__(self, trials: Sequence[plan.Trial]):
    self._trials = list(trials)
    self._lock = threading.Lock()
    self._held: dict[int, str] = {}

  def take(self, number: int) -> plan.Trial | None:
    """Returns the next trial of a child; None when all are taken."""
    with self._lock:
      others = {v for k, v in self._held.items() if k != number}

      def order(trial: plan.Trial) -> int:
        if trial.pool == self._held.get(number):
          return 0
        return 2 if trial.pool in others else 1

      if not self._trials:
        return None
      trial = min(self._trials, key=order)  # The first of the best.
      self._trials.remove(trial)
      self._held[number] = trial.pool
      return trial


def _serve(
  workdir: Path,
  number: int,
  count: int,
  todo: _Todo,
  wanted: Collection[str],
  done: queue.Queue,
) -> None:
  """Runs trials in a child, or a new one if it is lost, until none is left.

  The thread lives as long as its child: Linux ends a child with the thread
  that started it.
  """
  child = None
  try:
    while (trial := todo.take(number)) is not None:
      order = {
        "name": trial.name,
        "config": config_lib.flatten(trial.config),
        "wanted": sorted(wanted),
      }
      outcome: dict[str, Any]
      try:
        child = child or _child(workdir, number, count)
        outcome = child.call(order)
      except children.ChildError as error:
        if child is not None:
          child.close()
        child = None
        outcome = {"error": str(error), "seconds": None}
      if "error" in outcome:
        outcome["error"] = cli.with_flags(outcome["error"])
      done.put((trial, outcome))
  finally:
    if child is not None:
      child.close()
    done.put(None)


def run(
  study: plan.Study,
  trials: Sequence[plan.Trial],
  workdir: Path,
  count: int | None = None,
) -> None:
  """Runs the trials that are not done, and failed ones again.

  Args:
    study: The study.
    trials: Those to look at.
    workdir: The folder of the study, locked by the caller.
    count: How many processes; by default one a core, as memory allows.

  Raises:
    EcosError: A trial was done with another configuration.
  """
  left = [trial for trial in trials if row(workdir, trial) is None]
  if not left:
    return
  where = {
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "versions": machine.versions(_PACKAGES),
    "machine": f"{machine.processor()}, cores: {machine.cores()}",
  }
  done: queue.Queue = queue.Queue()
  todo = _Todo(left)
  count = min(count or _processes(), len(left))
  for number in range(count):
    arguments = (workdir, number, count, todo, study.wanted(), done)
    threading.Thread(target=_serve, args=arguments, daemon=True).start()
  estimate = _Estimate(left, count)
  total, running, ended = len(trials), count, len(trials) - len(left)
  with tqdm.tqdm(
    total=total,
    initial=ended,
    desc="trials",
    disable=None,
    bar_format="{desc} |{bar}| {n}/{total} [{elapsed}{postfix}]",
  ) as bar:
    while running:
      if (reply := done.get()) is None:
        running -= 1
        continue
      trial, outcome = reply
      _keep(study, trial, workdir, outcome, where)
      estimate.add(trial, outcome["seconds"])
      ended += 1
      bar.update()
      bar.set_postfix_str(f"{estimate.text()} left")
      left_text = f"about {estimate.text()} left"
      tqdm.tqdm.write(f"[{ended}/{total}] {_line(trial, outcome)}; {left_text}")


def _keep(
  study: plan.Study,
  trial: plan.Trial,
  workdir: Path,
  outcome: dict[str, Any],
  where: dict[str, Any],
) -> None:
  """Writes the row of a trial, or its failure."""
  path = folder(workdir, trial)
  path.mkdir(parents=True, exist_ok=True)
  if "error" in outcome:
    alone = plan.command(study, trial, Path("runs") / "trial")
    files.write_json(path / FAILURE, outcome | {"command": alone})
    return
  (path / FAILURE).unlink(missing_ok=True)
  files.write_json(
    path / ROW,
    {
      "name": trial.name,
      "values": trial.values,
      "config": config_lib.flatten(trial.config),
      **outcome,
      **where,
    },
  )


def _line(trial: plan.Trial, outcome: dict[str, Any]) -> str:
  if "error" in outcome:
    return f"{trial.name} FAILED: {outcome['error']}"
  accuracy = outcome["summary"]["accuracy"]
  told = "" if accuracy is None else f" {100 * accuracy:.1f} %"
  return f"{trial.name}{told} {outcome['seconds']:.0f} s"


class _Estimate:
  """How long the rest will take, from the times of trials of each method."""

  def __init__(self, trials: Sequence[plan.Trial], processes: int):
    self._left = list(trials)
    self._processes = processes
    self._seconds: dict[str, list[float]] = {}

  def add(self, trial: plan.Trial, seconds: float | None) -> None:
    """Counts a trial as done; None if its time is not known."""
    self._left.remove(trial)
    if seconds is not None:
      self._seconds.setdefault(self._kind(trial), []).append(seconds)

  def text(self) -> str:
    """Returns the time that is left, as in '12 min'."""
    means = {kind: sum(s) / len(s) for kind, s in self._seconds.items()}
    if not means:
      return "?"
    overall = sum(means.values()) / len(means)
    seconds = sum(means.get(self._kind(t), overall) for t in self._left)
    seconds /= self._processes
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"

  def _kind(self, trial: plan.Trial) -> str:
    return trial.config.sampling.method.value

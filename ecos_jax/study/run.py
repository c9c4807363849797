"""Runs a study: the trials that are left, in child processes, with progress.

Only the parent writes the row of a trial (`row.json`) or its failure
(`failure.json`), atomically and after all other files of the trial. So whenever
a process is killed, a trial is done, or goes on at the next call.
"""

from collections.abc import Sequence
import contextlib
import datetime
import json
import os
from pathlib import Path
import queue
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
  different = [
    f"`{name}` was {found['config'][name]}, now is {value}"
    for name, value in config_lib.flatten(trial.config).items()
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
  lines, states = [], []
  for trial in study.trials():
    if (found := row(workdir, trial)) is not None:
      states.append("done")
      state = f"done, {found['seconds']:.0f} s"
    elif (found := failure(workdir, trial)) is not None:
      states.append("failed")
      state = f"FAILED: {found['error']}"
    else:
      states.append(state := "left")
    lines.append(f"{trial.name}  {state}")
  counts = [f"{states.count(s)} {s}" for s in ("done", "failed", "left")]
  return "\n".join([*lines, f"{len(states)} trials: {', '.join(counts)}"])


def _processes() -> int:
  """Returns how many processes run at once: one per core, as memory allows.

  An accelerator serves one process.
  """
  # Asked in a child: JAX would keep the accelerator from the trials.
  ask = "ecos_jax.benchmark.machine:backend"
  if children.once(ask, None, os.environ) != "cpu":
    return 1
  fit = machine.available_bytes() // _CHILD_BYTES
  return max(1, min(machine.cores(), fit))


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
    environment |= machine.threads(1)
    if sys.platform == "linux":
      cores = sorted(os.sched_getaffinity(0))
      core = cores[number % len(cores)]
  return children.Child(
    "ecos_jax.study.trial:start",
    {"workdir": str(workdir), "core": core},
    environment=environment,
    log=logs / f"worker-{number}.txt",
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
      if not self._trials:
        return None
      mine = self._held.pop(number, None)
      others = set(self._held.values())
      trial = min(
        self._trials, key=lambda t: (t.pool != mine, t.pool in others)
      )
      self._trials.remove(trial)
      self._held[number] = trial.pool
      return trial


def run(
  study: plan.Study,
  trials: Sequence[plan.Trial],
  workdir: Path,
  count: int | None = None,
) -> None:
  """Runs the trials that are not done, and failed ones again.

  Args:
    study: The study.
    trials: The trials to run, unless they are done.
    workdir: The folder of the study, locked by the caller.
    count: How many processes; by default one per core, as memory allows.

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
  todo, done = _Todo(left), queue.Queue()
  running = count = min(count or _processes(), len(left))
  order = {"wanted": sorted(study.wanted())}

  def serve(number: int) -> None:
    """Runs trials in a child, or in a new one if it is lost.

    The thread lives as long as its child: Linux ends a child with the thread
    that started it.
    """
    with contextlib.ExitStack() as stack:
      stack.callback(done.put, None)
      child = None
      while (trial := todo.take(number)) is not None:
        config = config_lib.flatten(trial.config)
        try:
          if child is None:
            child = _child(workdir, number, count)
            stack.callback(child.close)
          outcome = child.call(order | {"name": trial.name, "config": config})
        except children.ChildError as error:
          child = None
          outcome = {"error": str(error), "seconds": None}
        done.put((trial, outcome))

  for number in range(count):
    threading.Thread(target=serve, args=(number,), daemon=True).start()
  ended = len(trials) - len(left)
  with tqdm.tqdm(
    total=len(trials), initial=ended, desc="trials", disable=None
  ) as bar:
    while running:
      if (reply := done.get()) is None:
        running -= 1
        continue
      trial, outcome = reply
      text = _keep(study, trial, folder(workdir, trial), outcome, where)
      ended += 1
      bar.update()
      tqdm.tqdm.write(f"[{ended}/{len(trials)}] {trial.name} {text}")


def _keep(
  study: plan.Study,
  trial: plan.Trial,
  path: Path,
  outcome: dict[str, Any],
  where: dict[str, Any],
) -> str:
  """Writes the row of a trial, or its failure; returns how it ended."""
  path.mkdir(parents=True, exist_ok=True)
  if "error" in outcome:
    error = cli.with_flags(outcome["error"])
    alone = {"error": error, "command": plan.command(study, trial)}
    files.write_json(path / FAILURE, outcome | alone)
    return f"FAILED: {error}"
  (path / FAILURE).unlink(missing_ok=True)
  row = {
    "name": trial.name,
    "values": trial.values,
    "config": config_lib.flatten(trial.config),
    **outcome,
    **where,
  }
  files.write_json(path / ROW, row)
  accuracy = outcome["summary"]["accuracy"]
  told = "" if accuracy is None else f"{100 * accuracy:.1f} % "
  return f"{told}{outcome['seconds']:.0f} s"

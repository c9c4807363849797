"""Runs trials in a child process; stages that several trials need run once.

Two stages are the same if their parts of the configuration and the digests of
their inputs are. The first trial that makes a stage leaves it in the store,
under a digest of these; the others take its files from there as hard links, and
check its manifest as if it were their own. The client's response is not shared,
since it is random by design, nor are stages that no two trials have in common.
"""

from collections.abc import Callable, Mapping
import json
import os
from pathlib import Path
import shutil
import time
import traceback
from typing import Any

from absl import flags

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import pipeline
from ecos_jax import workdir as workdir_lib
from ecos_jax.config import reading
from ecos_jax.data import problem
from ecos_jax.study import measure

_SHARED = (
  *("pool", "bank", "first_codebook", "first_query", "codebook", "query"),
  "teacher",
)
_POOLS_IN_MEMORY = 2


def start(job: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
  """Returns, in a child process, what runs a trial and returns its row.

  The process keeps what is slow to get: JAX, compiled programs, the data.

  Args:
    job: `workdir` of the study, and the `core` to stay on, or null. The order
      of a trial has its `name`, its `config` (all fields, flat) and the names
      of the metrics that are `wanted`.
  """
  if job["core"] is not None:
    # Before JAX starts: it makes a thread for each core that it may use.
    os.sched_setaffinity(0, {job["core"]})
  flags.FLAGS.mark_as_parsed()
  workdir, load = Path(job["workdir"]), remembering()
  return lambda order: _run(order, workdir, load)


def _run(
  order: dict[str, Any], workdir: Path, load: Callable[..., problem.Problem]
) -> dict[str, Any]:
  """Returns the row of a trial, or its `error`."""
  begin = time.monotonic()
  print(f"\n{order['name']}", flush=True)
  path = workdir / "trials" / order["name"]
  config = reading.read(order["config"])
  try:
    summary = pipeline.run(
      config,
      path,
      enter=lambda path: SharingWorkdir(path, workdir / "stages"),
      load=load,
    )
    assert summary is not None  # Study.validate refuses remote clients.
    measured = measure.measure(
      config, path, summary, order["wanted"], load(config.data, config.seed)
    )
  except Exception as error:
    traceback.print_exc()
    known = isinstance(error, errors.EcosError)
    return {
      "error": str(error) if known else f"{type(error).__name__}: {error}",
      "seconds": time.monotonic() - begin,
    }
  return {
    "summary": summary,
    "simulation": measured,
    "seconds": round(time.monotonic() - begin, 3),
  }


class SharingWorkdir(workdir_lib.Workdir):
  """The working directory of a trial, which shares stages with others."""

  def __init__(self, path: Path, store: Path):
    """Opens or makes `path`; shared stages are in the folder `store`."""
    super().__init__(path)
    self._store = store
    store.mkdir(parents=True, exist_ok=True)

  def stage(
    self,
    name: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    work: Callable[[Path], dict[str, Any]],
    **options: bool,
  ) -> workdir_lib.Stage:
    """Returns the finished stage; see `Workdir.stage`."""
    if name not in _SHARED or self.done(name):
      return super().stage(name, config, inputs, work, **options)
    identity = json.dumps([name, dict(config), dict(inputs)], sort_keys=True)
    kept = self._store / files.digest(identity.encode())
    # A second trial waits for the first, whose lock ends with its process.
    with kept.with_suffix(".lock").open("a") as lock:
      with errors.about("workdir", self._store.parent):
        files.lock(lock)
      if kept.exists():
        _link(kept, self.path / name)
      stage = super().stage(name, config, inputs, work, **options)
      if not kept.exists():
        _link(stage.path, kept)
    return stage


def _link(source: Path, target: Path) -> None:
  """Makes `target` hold the files of a finished stage, all or nothing.

  When this returns, it survives a loss of power.
  """
  temporary = target.with_name(f".{target.name}.tmp")
  for left in (temporary, target):
    if left.exists():
      shutil.rmtree(left)
  shutil.copytree(source, temporary, symlinks=True, copy_function=_link_file)
  files.sync_tree(temporary)
  temporary.rename(target)
  files.sync(target.parent)


def _link_file(source: str, target: str) -> None:
  try:
    os.link(source, target, follow_symlinks=False)
  except OSError:  # The file system has no hard links.
    shutil.copy2(source, target, follow_symlinks=False)


def remembering() -> Callable[..., problem.Problem]:
  """Returns `problem.load` that keeps the last few results in memory."""
  kept: dict[str, problem.Problem] = {}

  def load(data: config_lib.Data, seed: int, **options: Any) -> problem.Problem:
    key = repr((data, seed))
    if key not in kept:
      if len(kept) == _POOLS_IN_MEMORY:
        del kept[next(iter(kept))]
      kept[key] = problem.load(data, seed, **options)
    return kept[key]

  return load

"""Stages that several cells of a study need, made once.

A stage is known by what it is made from: its part of the configuration and the
digests of its inputs. The first cell that makes it leaves it in the store under
a digest of that; the others take it from there, file for file as hard links,
and check its manifest as if it were their own. What is random by design, the
client's answer, and what no two cells share stay out.
"""

from collections.abc import Callable, Mapping
import json
import os
from pathlib import Path
import shutil
from typing import Any

from ecos_jax import config
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.data import problem

_SHARED = (
  *("pool", "bank", "first_codebook", "first_query", "codebook", "query"),
  "teacher",
)
_POOLS_IN_MEMORY = 2


class SharingWorkdir(workdir.Workdir):
  """The working directory of a cell, which shares stages with others."""

  def __init__(self, path: Path, store: Path):
    """Opens or makes the folder.

    Args:
      path: The folder of the cell.
      store: The folder of shared stages, on the same file system.

    Raises:
      WorkdirError: As in `Workdir`.
    """
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
  ) -> workdir.Stage:
    """Returns the finished stage; see `Workdir.stage`."""
    if name not in _SHARED or self.done(name):
      return super().stage(name, config, inputs, work, **options)
    identity = json.dumps([name, dict(config), dict(inputs)], sort_keys=True)
    kept = self._store / files.digest(identity.encode())
    # Who comes second waits for the first, whose lock ends with its process.
    with kept.with_suffix(".lock").open("a") as lock:
      files.lock(lock)
      if kept.exists():
        _link(kept, self.path / name)
      stage = super().stage(name, config, inputs, work, **options)
      if not kept.exists():
        _link(stage.path, kept)
    return stage


def _link(source: Path, target: Path) -> None:
  """Makes `target` hold the files of a finished stage, all or nothing."""
  temporary = target.with_name(f".{target.name}.tmp")
  for left in (temporary, target):
    if left.exists():
      shutil.rmtree(left)
  shutil.copytree(source, temporary, symlinks=True, copy_function=_link_file)
  temporary.rename(target)


def _link_file(source: str, target: str) -> None:
  try:
    os.link(source, target, follow_symlinks=False)
  except OSError:  # a file system without hard links
    shutil.copy2(source, target, follow_symlinks=False)


def remembering() -> Callable[..., problem.Problem]:
  """Returns `problem.load` that keeps the last few results in memory."""
  kept: dict[str, problem.Problem] = {}

  def load(data: config.Data, seed: int, **options: Any) -> problem.Problem:
    key = repr((data, seed))
    if key not in kept:
      if len(kept) == _POOLS_IN_MEMORY:
        del kept[next(iter(kept))]
      kept[key] = problem.load(data, seed, **options)
    return kept[key]

  return load

"""Checkpoints of training: complete, checked, and restored on any devices.

The only file that imports orbax. A checkpoint is a tree of arrays and a
JSON-able record beside it. Orbax commits it by a rename, so a killed run leaves
no half checkpoint; a digest of the arrays finds damage that comes later.
"""

import contextlib
import functools
import hashlib
from pathlib import Path
import sys
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np
from orbax import checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ecos_jax import errors

_KEPT = 2
_REASON_CHARACTERS = 200


class Restored(NamedTuple):
  """What was saved after `step` steps."""

  step: int
  state: Any
  record: dict[str, Any]


@contextlib.contextmanager
def _quiet():
  """Silences orbax's log, which repeats the errors that it raises."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


@functools.cache
def _hush() -> None:
  """Silences orbax's "Event loop is closed" messages from now on.

  After an error it prints one at the end of the process for each file that it
  had begun to read or to write.
  """
  hook = sys.unraisablehook

  def unraisablehook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      hook(unraisable)

  sys.unraisablehook = unraisablehook


def _digest(state: Any) -> str:
  sha = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(state):
    array = np.ascontiguousarray(leaf)
    sha.update(f"{jax.tree_util.keystr(path)} {array.dtype.str}".encode())
    sha.update(array.data)
  return sha.hexdigest()


class Checkpoints:
  """The checkpoints in one folder; the last two are kept."""

  def __init__(self, directory: Path, *, read_only: bool = False):
    """Opens or makes the folder and removes half-written checkpoints.

    Args:
      directory: The folder.
      read_only: Whether to change nothing; the folder must exist.
    """
    _hush()
    self._directory = directory.absolute()
    self._read_only = read_only
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.LatestN(_KEPT),
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        # Saved in the background, the state would be overwritten by the next
        # step, which reuses its buffers.
        enable_async_checkpointing=False,
      ),
    )

  def __enter__(self) -> "Checkpoints":
    """Returns itself."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Closes orbax's threads."""
    self._manager.close()

  def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
    """Saves a checkpoint; when it returns, the checkpoint is on disk.

    Args:
      step: Number of steps that led to it.
      state: Tree of arrays, replicated over the devices.
      record: JSON-able.
    """
    record = {"digest": _digest(state), "record": record}
    with _quiet():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          record=ocp.args.JsonSave(record),
        ),
        force=True,
      )

  def restore(self, like: Any) -> Restored | None:
    """Returns the last good checkpoint, or None if none was ever saved.

    Newer, damaged ones are deleted with a warning, and training repeats their
    steps. If the folder is read only, a damaged last checkpoint is an error:
    the one before it is another model.

    Args:
      like: Tree of arrays with the shapes, types and shardings to restore to.

    Raises:
      EcosError: There are checkpoints, but none can be read; or, read only, not
        the last.
    """
    damaged = []
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps[:1] if self._read_only else steps:
      # Damage on disk raises any of a dozen classes of exception.
      try:
        restored = self._read(step, like)
      except Exception as error:
        # Tensorstore's message describes the whole array.
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
        logging.warning(
          "%s/%d is unreadable: %s", self._directory, step, reason
        )
        damaged.append(step)
        continue
      for newer in damaged:
        self._manager.delete(newer)
      return restored
    if damaged and self._read_only:
      raise errors.EcosError(
        f"the last checkpoint, {self._directory}/{damaged[0]}, cannot be read, "
        "or it is of another model"
      )
    if damaged:
      raise errors.EcosError(
        f"none of the checkpoints in {self._directory} can be read, or they "
        "are of another model: delete that folder to train from the start"
      )
    return None

  def _read(self, step: int, like: Any) -> Restored:
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(
          jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        ),
        record=ocp.args.JsonRestore(),
      ),
    )
    state, record = restored["state"], restored["record"]
    if _digest(state) != record["digest"]:
      raise ValueError("the arrays differ from what was saved")
    return Restored(step, state, record["record"])

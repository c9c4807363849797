"""The working directory of a run: which stages are done, and from what.

Each stage of the pipeline has one folder. It writes its artefacts there and,
last and atomically, `manifest.json`: the identity of the stage (the fields of
the configuration that it depends on, the digests of its inputs) and its result
(counts, digests, seconds, versions). The next call skips a stage whose manifest
has the same identity, raises an error that names what differs if it has another
one, and begins or resumes a stage without a manifest.

Several processes share a working directory on a file system that all of them
see. Only process 0 locks it, decides, and writes manifests.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import datetime
import importlib.metadata
import json
import os
from pathlib import Path
import shutil
import socket
import time
from typing import Any, Literal, NamedTuple, NoReturn

from absl import logging
import numpy as np

from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files

MANIFEST = "manifest.json"
_STARTED = "started.json"
_IDENTITY = {"config": dict, "inputs": dict}
_LOCK = ".lock"
_FULL_DISK_BYTES = 1 << 20
# Whose versions a manifest records.
_PACKAGES = "ecos_jax", "jax", "flax", "optax", "numpy"


class WorkdirError(errors.EcosError):
  """A working directory that this run cannot use."""


class Stage(NamedTuple):
  """A finished stage: its folder, and what its work returned.

  Attributes:
    seconds: How long its work took.
    skipped: Whether an earlier call finished it.
  """

  path: Path
  result: dict[str, Any]
  seconds: float
  skipped: bool


def damaged(path: Path, why: str = "") -> WorkdirError:
  """Returns the error about a damaged artefact.

  Args:
    path: The artefact, in the folder of its stage.
    why: The reason, if it is known.
  """
  reason = f" ({why})" if why else ""
  return WorkdirError(
    f"{path} is damaged{reason}: delete the folder {path.parent} to redo it"
  )


def read_bytes(path: Path, sha256: str) -> bytes:
  """Returns the content of an artefact.

  Args:
    path: The file.
    sha256: Its digest in the manifest.

  Raises:
    WorkdirError: Its content has another digest.
  """
  data = path.read_bytes()
  if files.digest(data) != sha256:
    raise damaged(path)
  return data


def load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
  """Returns the array of an artefact.

  Raises:
    WorkdirError: It is damaged.
  """
  try:
    return np.load(path, mmap_mode=mmap_mode)
  except (ValueError, EOFError) as error:
    raise damaged(path, str(error)) from error


@contextlib.contextmanager
def redo_named(stage: Path) -> Iterator[None]:
  """Adds to errors of the block that deleting the stage's folder redoes it."""
  try:
    yield
  except errors.EcosError as error:
    raise WorkdirError(
      f"{error}: delete the folder {stage} to redo it"
    ) from error


def read_manifest(stage: Path) -> dict[str, Any]:
  """Returns the manifest of a finished stage.

  Args:
    stage: Its folder.

  Raises:
    WorkdirError: It is damaged. A missing field of the result raises this error
      when it is read.
    FileNotFoundError: The stage is not finished.
  """
  path = stage / MANIFEST
  manifest = _read_json(
    path, identity=dict, result=dict, seconds=float, versions=dict
  )
  if not _holds(manifest["identity"], **_IDENTITY):
    raise damaged(path)
  return manifest | {"result": _Result(path, manifest["result"])}


def _read_json(path: Path, **kinds: type) -> dict[str, Any]:
  """Returns the object in a JSON file whose fields have these types."""
  found: Any = None
  with contextlib.suppress(ValueError):
    found = json.loads(path.read_bytes())
  if not _holds(found, **kinds):
    raise damaged(path)
  return found


def _holds(value: object, **kinds: type) -> bool:
  return isinstance(value, dict) and all(
    isinstance(value.get(name), kind) for name, kind in kinds.items()
  )


class _Result(dict[str, Any]):
  """The result in a manifest; a missing field is a `WorkdirError`."""

  def __init__(self, manifest: Path, fields: dict[str, Any]):
    super().__init__(fields)
    self._manifest = manifest

  def __missing__(self, field: str) -> NoReturn:
    raise damaged(self._manifest, f"it has no {field}")


class Workdir:
  """The folder of one run, locked against a second job."""

  def __init__(self, path: Path):
    """Opens or makes the folder, and locks it.

    Args:
      path: The folder.

    Raises:
      WorkdirError: It cannot be made or written to, or another job uses it.
    """
    self.path = path.absolute()
    self._lock = None
    holder, found = distributed.first(self._acquire), ""
    with contextlib.suppress(OSError):
      found = (self.path / _LOCK).read_text()
    if found != holder:
      raise WorkdirError(
        f"`workdir`={path} on {socket.gethostname()} is not the folder that "
        "process 0 has: it must be on a file system that all processes see"
      )

  def _acquire(self) -> str:
    """Locks the folder and returns a line about this process, the holder."""
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = (self.path / _LOCK).open("a+")
    except OSError as error:
      raise WorkdirError(
        f"`workdir`={self.path} cannot be written to: {error.strerror}"
      ) from None
    try:
      locked = files.lock(self._lock, wait=False)
    except files.NoLocksError as error:
      logging.warning(
        "%s: %s: see to it that no second job uses it", self.path, error
      )
      locked = True
    if not locked:
      with self._lock:
        self._lock.seek(0)
        holder = self._lock.read().strip()
      raise WorkdirError(
        f"`workdir`={self.path} is in use by {holder}: wait for it, or take "
        "another `workdir`"
      )
    now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
    holder = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
    self._lock.truncate(0)
    self._lock.write(holder)
    self._lock.flush()
    return holder

  def __enter__(self) -> "Workdir":
    """Returns itself; the end of the block releases the lock."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Releases the lock."""
    if self._lock:
      self._lock.close()

  def done(self, name: str) -> bool:
    """Returns whether the stage is finished."""
    return (self.path / name / MANIFEST).exists()

  def discard(self, name: str) -> list[str]:
    """Makes a stage unfinished, and removes the stages that were made from it.

    The stage keeps its files. Its manifest goes last: after a kill the same
    call does the rest.

    Returns:
      The names of the stages, that one first.
    """
    made_from = {}
    for path in self.path.iterdir():
      for file in (path / MANIFEST, path / _STARTED):
        if file.exists():
          found = _read_json(file)
          inputs = found.get("identity", found)["inputs"]
          made_from.setdefault(path.name, set(inputs))
    names = [name]
    for known in names:
      names += [
        other
        for other, inputs in made_from.items()
        if known in inputs and other not in names
      ]
    for other in reversed(names[1:]):
      # Renamed first: no stage is ever seen half removed.
      hidden = self.path / f".{other}.removed"
      shutil.rmtree(hidden, ignore_errors=True)
      (self.path / other).rename(hidden)
      shutil.rmtree(hidden)
    (self.path / name / MANIFEST).unlink()
    return names

  def stage(
    self,
    name: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    work: Callable[[Path], dict[str, Any]],
    *,
    resumable: bool = False,
    together: bool = False,
  ) -> Stage:
    """Does the work of a stage if it is not done, and returns the stage.

    Args:
      name: The name of the stage and of its folder.
      config: The fields of the configuration that its result depends on, by
        dotted name.
      inputs: Digests of what it reads, by name.
      work: Fills the given folder and returns the result, which JSON can hold.
      resumable: Whether `work` continues from the files of an interrupted call;
        otherwise it gets an empty folder.
      together: Whether all processes call `work`, and the result of process 0
        is kept; otherwise only process 0 calls it.

    Raises:
      WorkdirError: The stage was made from other inputs, its folder holds files
        that are not of a run, or the disk is full.
    """
    path = self.path / name
    identity = {"config": dict(config), "inputs": dict(inputs)}
    with self._disk_named():
      manifest = distributed.first(
        lambda: self._begin(path, identity, resumable)
      )
      if manifest is not None:
        # What process 0 sent the others is a plain dict.
        result = _Result(path / MANIFEST, manifest["result"])
        return Stage(path, result, manifest["seconds"], skipped=True)
      begin = time.monotonic()
      ours = work(path) if together else None

      def finish() -> dict[str, Any]:
        result = work(path) if ours is None else ours
        return self._finish(path, identity, result, begin)

      manifest = distributed.first(finish)
    return Stage(path, manifest["result"], manifest["seconds"], skipped=False)

  def _begin(
    self, path: Path, identity: dict[str, Any], resumable: bool
  ) -> dict[str, Any] | None:
    """Returns the manifest if the stage is done; otherwise makes its folder."""
    if (path / MANIFEST).exists():
      manifest = read_manifest(path)
      self._compare(path, manifest["identity"], identity)
      return manifest
    started = path / _STARTED
    if resumable and started.exists():
      self._compare(path, _read_json(started, **_IDENTITY), identity)
      files.remove_temporary(path)
    else:
      self._clear(path)
      files.write_json(path / _STARTED, identity)
    return None

  def _finish(
    self,
    path: Path,
    identity: dict[str, Any],
    result: dict[str, Any],
    begin: float,
  ) -> dict[str, Any]:
    """Writes and returns the manifest."""
    manifest = {
      "identity": identity,
      "result": result,
      "seconds": round(time.monotonic() - begin, 3),
      "versions": {
        name: importlib.metadata.version(name) for name in _PACKAGES
      },
    }
    # Artefacts reach the disk before the manifest that vouches for them.
    files.sync_tree(path)
    files.sync(self.path)
    files.write_json(path / MANIFEST, manifest)
    return manifest

  def _clear(self, path: Path) -> None:
    """Makes an empty folder, removing the files of an interrupted stage."""
    if path.exists():
      names = [entry.name for entry in path.iterdir()]
      half_written = all(name.startswith(f".{_STARTED}.") for name in names)
      if _STARTED not in names and not half_written:
        raise WorkdirError(
          f"{path} holds files that are not of a run: take another `workdir`"
        )
      shutil.rmtree(path)
    path.mkdir()

  def _compare(self, path: Path, old: dict[str, Any], new: dict[str, Any]):
    # Through JSON, since that is how the old one was stored.
    new = json.loads(json.dumps(new))
    if old == new:
      return

    def changed(part: str) -> list[tuple[str, object, object]]:
      keys = sorted(old[part].keys() | new[part].keys())
      pairs = [(key, old[part].get(key), new[part].get(key)) for key in keys]
      return [pair for pair in pairs if pair[1] != pair[2]]

    differences = [
      f"`{field}` was {before}, now is {now}"
      for field, before, now in changed("config")
    ] or [f"its input '{name}' changed" for name, _, _ in changed("inputs")]
    raise WorkdirError(
      f"{path} was made otherwise: {', '.join(differences)}; take another "
      f"`workdir`, or delete {path} to redo it"
    )

  @contextlib.contextmanager
  def _disk_named(self):
    try:
      yield
    # Libraries report a full disk in many ways: look at the disk itself.
    except Exception as error:
      if not os.access(self.path, os.W_OK):
        raise WorkdirError(
          f"`workdir`={self.path} can no longer be written to: make it "
          "writable and run the same command again"
        ) from error
      full = shutil.disk_usage(self.path).free < _FULL_DISK_BYTES
      if full or "No space left" in _reasons(error):
        raise WorkdirError(
          f"no space left on the disk of `workdir`={self.path}: free some and "
          "run the same command again"
        ) from error
      raise


def _reasons(error: BaseException | None) -> str:
  """Returns the messages of an error and its causes."""
  if error is None:
    return ""
  return f"{error}\n{_reasons(error.__cause__ or error.__context__)}"

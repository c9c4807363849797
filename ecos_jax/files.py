"""Files on a local disk: whole or absent, durable, locked, digested.

A crash or a kill at any moment leaves the old content of a file or the new one,
never a part of it, and at worst a hidden temporary file beside it.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path
import re
import secrets
from typing import IO, Any

from ecos_jax import errors

_NOT_SUPPORTED = {
  *(errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
}


class NoLocksError(errors.EcosError):
  """A file is on a file system that has no locks."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """Yields a temporary path beside `path`, which then becomes `path`.

  If the block fails, the temporary file is removed and `path` is untouched. The
  new file is atomic but not synced; several processes may write one `path`, and
  the last one wins.

  Args:
    path: The file to write; its folder must exist.
  """
  temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
  try:
    yield temporary
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def remove_temporary(folder: Path) -> None:
  """Removes the temporary files that killed writers left in a folder."""
  for path in folder.rglob(".*.????????.tmp"):
    if path.is_file():
      path.unlink()


def write(
  path: Path, *parts: bytes | memoryview, mode: int | None = None
) -> None:
  """Writes a file atomically; when this returns, it survives a loss of power.

  Args:
    path: The file; its folder must exist.
    parts: Its whole content, in order.
    mode: Its permissions; None for the usual ones.
  """
  with replacing(path) as temporary, temporary.open("wb") as file:
    if mode is not None:
      # exFAT and CIFS have no permissions to change.
      with contextlib.suppress(PermissionError):
        os.fchmod(file.fileno(), mode)
    for part in parts:
      file.write(part)
    file.flush()
    os.fsync(file.fileno())
  sync(path.parent)


def write_json(path: Path, value: Any) -> None:
  """Writes `value` as indented JSON; see `write`."""
  write(path, json.dumps(value, indent=2).encode() + b"\n")


def sync(path: Path) -> None:
  """Forces a file, or the list of names in a folder, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    # Some file systems, such as CIFS, do this for files only.
    if not path.is_dir() or error.errno not in _NOT_SUPPORTED:
      raise
  finally:
    os.close(descriptor)


def sync_tree(folder: Path) -> None:
  """Forces to the disk a folder, and every file and folder in it."""
  for root, _, names in os.walk(folder):
    for name in names:
      path = Path(root, name)
      if not path.is_symlink():
        sync(path)
    sync(Path(root))


def lock(file: IO[Any], *, wait: bool = True) -> bool:
  """Locks an open file until it is closed or this process ends.

  Args:
    file: The file.
    wait: Whether to wait while another process has the lock.

  Returns:
    Whether this process has the lock now.

  Raises:
    NoLocksError: The file system has no locks.
  """
  access = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
  # NFS has no exclusive lock for a file that is open for reading.
  kind = fcntl.LOCK_SH if access == os.O_RDONLY else fcntl.LOCK_EX
  try:
    fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    if error.errno in _NOT_SUPPORTED:
      raise NoLocksError(
        f"its file system has no locks ({error.strerror}), as NFS without its "
        "lock service and Lustre without flock"
      ) from error
    raise
  return True


def natural(name: str) -> tuple[list[str | int], str]:
  """Returns a key of a name by which `2.tar` sorts before `10.tar`."""
  parts = re.split("([0-9]+)", name)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def printable(name: str) -> str:
  """Returns the name of a file as text that any file can hold."""
  return os.fsencode(name).decode("utf-8", "backslashreplace")


def shown(text: str) -> str:
  """Returns text of others as one line that does not rewrite the terminal."""
  return "".join(c if c.isprintable() else "?" for c in text)


def content_digest(path: Path, kept: Path | None = None) -> str:
  """Returns the sha256 of a file's content, as hex, in constant memory.

  Args:
    path: The file.
    kept: A file that keeps the digest until the size or the modification time
      of `path` changes; None: it is not kept.
  """
  stat = path.stat()
  state = [stat.st_size, stat.st_mtime_ns]
  if kept is not None:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
      found = json.loads(kept.read_bytes())
      if found["state"] == state:
        return str(found["sha256"])
  with path.open("rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
  if kept is not None:
    write_json(kept, {"state": state, "sha256": sha256})
  return sha256


def digest(*parts: bytes | memoryview) -> str:
  """Returns the sha256 of the parts in order, as hex."""
  sha = hashlib.sha256()
  for part in parts:
    sha.update(part)
  return sha.hexdigest()

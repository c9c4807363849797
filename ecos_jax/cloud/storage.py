"""Files of a feature bank, on a local disk or in a bucket (fsspec)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations import local
import numpy as np

from ecos_jax import errors
from ecos_jax import files


class BankError(errors.EcosError):
  """A feature bank that cannot be read or made."""


def raw_bytes(array: np.ndarray) -> memoryview:
  """Returns the memory of a contiguous array."""
  return array.reshape(-1).view(np.uint8).data


class Folder:
  """A folder on any file system; files appear whole or not at all."""

  def __init__(self, path: Path | str):
    """Points at a folder, or at a URL that fsspec knows."""
    self.fs, self.root = fsspec.core.url_to_fs(str(path))
    self.name = str(path)
    self.is_local = isinstance(self.fs, local.LocalFileSystem)

  def path(self, file: str) -> str:
    """Returns where a file of the folder is."""
    return f"{self.root.rstrip('/')}/{file}"

  def make(self) -> None:
    """Makes the folder, if it is not there."""
    self.fs.makedirs(self.root, exist_ok=True)

  def sizes(self) -> dict[str, int]:
    """Returns the bytes of every file, by name."""
    try:
      entries = self.fs.ls(self.root, detail=True, refresh=True)
    except (FileNotFoundError, NotADirectoryError):
      return {}
    return {
      entry["name"].rpartition("/")[2]: entry["size"] for entry in entries
    }

  def write(self, file: str, *parts: bytes | memoryview) -> None:
    """Writes a file of these parts, whole or not at all."""
    if self.is_local:
      files.write(Path(self.path(file)), *parts)
    else:
      # Object stores show an object once it is complete.
      self.fs.pipe_file(self.path(file), b"".join(parts))

  def read_json(self, file: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      BankError: It is damaged.
    """
    try:
      found = json.loads(self.fs.cat_file(self.path(file)))
    except ValueError:
      found = None
    if not isinstance(found, dict):
      raise self.damaged(file)
    return found

  def damaged(self, file: str) -> BankError:
    """Returns the error about a file."""
    return BankError(
      f"{self.path(file)} is damaged: delete {self.name}, and build the bank "
      "again"
    )

  def read_into(self, file: str, offset: int, view: memoryview) -> None:
    """Fills `view` from a file.

    Raises:
      BankError: The file is shorter.
    """
    if not self.is_local:
      # One request: a file object of fsspec would read small pieces.
      end = offset + len(view)
      data = self.fs.cat_file(self.path(file), start=offset, end=end)
      if len(data) < len(view):
        raise BankError(f"{self.path(file)} is truncated")
      view[:] = data
      return
    with Path(self.path(file)).open("rb", buffering=0) as stream:
      stream.seek(offset)
      done = 0
      while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
          raise BankError(f"{self.path(file)} is truncated")
        done += count

  def sha256(self, file: str) -> str:
    """Returns the sha256 of a file, as hex."""
    with self.fs.open(self.path(file), "rb") as stream:
      return hashlib.file_digest(stream, "sha256").hexdigest()

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
    """Refers to a folder, or to a URL that fsspec knows; makes nothing."""
    self.fs, self.root = fsspec.core.url_to_fs(str(path))
    self.name = str(path)
    self.is_local = isinstance(self.fs, local.LocalFileSystem)

  def path(self, file: str) -> str:
    """Returns where a file of the folder is."""
    return f"{self.root.rstrip('/')}/{file}"

  def make(self) -> None:
    """Makes the folder if it does not exist."""
    self.fs.makedirs(self.root, exist_ok=True)

  def sizes(self) -> dict[str, int]:
    """Returns the size in bytes of every file, by name."""
    try:
      entries = self.fs.ls(self.root, detail=True, refresh=True)
    except (FileNotFoundError, NotADirectoryError):
      return {}
    return {
      entry["name"].rpartition("/")[2]: entry["size"] for entry in entries
    }

  def write(self, file: str, *parts: bytes | memoryview) -> None:
    """Writes a file that consists of these parts."""
    if self.is_local:
      files.write(Path(self.path(file)), *parts)
    else:
      # Object stores show an object once it is complete.
      self.fs.pipe_file(self.path(file), b"".join(parts))

  def read_json(self, file: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      BankError: The file is damaged.
    """
    try:
      found = json.loads(self.fs.cat_file(self.path(file)))
    except ValueError:
      found = None
    if not isinstance(found, dict):
      raise self.damaged(file)
    return found

  def error(self, file: str, state: str) -> BankError:
    """Returns an error about a file, with what to do."""
    return BankError(
      f"{self.path(file)} {state}: delete {self.name}, and build the bank again"
    )

  def damaged(self, file: str) -> BankError:
    """Returns the error about a damaged file."""
    return self.error(file, "is damaged")

  def read_into(self, file: str, offset: int, view: memoryview) -> None:
    """Fills `view` with the bytes of a file from `offset` on.

    Raises:
      BankError: The file is shorter.
    """
    if self.is_local:
      with Path(self.path(file)).open("rb") as stream:
        stream.seek(offset)
        count = stream.readinto(view)
    else:
      # One request: fsspec's file objects would read in small pieces.
      end = offset + len(view)
      data = self.fs.cat_file(self.path(file), start=offset, end=end)
      count = len(data)
      view[:count] = data
    if count < len(view):
      raise self.error(file, "is truncated")

  def sha256(self, file: str) -> str:
    """Returns the sha256 of a file, as hex."""
    with self.fs.open(self.path(file), "rb") as stream:
      return hashlib.file_digest(stream, "sha256").hexdigest()

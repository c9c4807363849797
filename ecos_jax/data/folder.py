"""Images in a folder and its subfolders: PNG, JPEG and WebP files, by path.

The folder is listed once: the name, size and time of change of each file, and
why a file cannot be read, if so; such files are left out. The listing can be
kept in a file. The next time, only folders are looked at: if one has changed,
all are listed again, and new or changed files are read. A file that was changed
in place is noticed when it is used.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import functools
import hashlib
import json
import os
from pathlib import Path
import re
import time
from typing import NamedTuple

from absl import logging
import numpy as np
from PIL import Image
import tqdm

from ecos_jax import errors
from ecos_jax import files as files_lib
from ecos_jax.data import images as image_files

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
_NUMBER = re.compile(r"[0-9]{1,9}")
_VERSION = 1
# A folder that changed just now may change again at the same time stamp.
_SETTLED_NS = 2_000_000_000


class File(NamedTuple):
  """A listed file; `why` says why it cannot be read, None if it can."""

  name: str
  size: int
  time: int
  why: str | None = None


class FolderSource:
  """Images in a folder and its subfolders, by path.

  The label of a file is the position of its folder's name in `classes`, or
  without `classes` that name as a number; otherwise it is -1. So no label
  depends on other files. A client's privacy needs this: if the existing folders
  were numbered, one image more could change the labels of all.

  Hidden files are left out, and so are links to folders, with a warning: they
  could form a cycle. Links to files are followed, with a warning if they lead
  out of the folder.

  Attributes:
    path: The folder.
    unreadable: Files that are left out because they cannot be read.
    classes: Number of classes.
  """

  def __init__(
    self,
    path: Path,
    classes: Sequence[str] | None = None,
    *,
    part: tuple[int, int] = (0, 100),
    listing: Path | None = None,
    may_be_empty: bool = False,
  ):
    """Lists the folder.

    Args:
      path: The folder.
      classes: Names of the folders that are classes, in the order of their
        labels; must not be derived from private data. None: the names are
        numbers.
      part: The first and the last percent of the files to take, in the order of
        a hash of their names: no file changes the place of another.
      listing: The file that keeps the listing; None: it is not kept.
      may_be_empty: Whether no image is no error.

    Raises:
      EcosError: The path is no folder, the folder holds no image, or `classes`
        names a class twice.
    """
    if classes is not None and len(set(classes)) < len(classes):
      raise errors.EcosError("`classes` names a class twice")
    if not path.is_dir():
      raise errors.EcosError(f"{path} is not a folder")
    self.name = files_lib.printable(path.resolve().name)
    if part != (0, 100):
      self.name += f"[{part[0]}%:{part[1]}%]"
    self.path = path
    files = [file for file in _listed(path, listing) if _within(file, part)]
    self.unreadable = [file for file in files if file.why is not None]
    self._files = [file for file in files if file.why is None]
    if not self._files and not may_be_empty:
      raise errors.EcosError(f"{path} holds no image ({', '.join(_SUFFIXES)})")
    self._classes = classes
    self._labels = np.array(
      [self._label(file.name) for file in self._files], np.int64
    )
    self.classes = (
      len(classes)
      if classes is not None
      else int(self._labels.max(initial=-1)) + 1
    )

  def _label(self, file: str) -> int:
    folder = Path(file).parent
    if self._classes is None:
      name = folder.as_posix()
      return int(name) if _NUMBER.fullmatch(name) else -1
    for name in (folder.as_posix(), folder.name):
      if name in self._classes:
        return self._classes.index(name)
    return -1

  @functools.cached_property
  def digest(self) -> str:
    """Returns a sha256 over the files' names, sizes and times of change."""
    sha = hashlib.sha256()
    if self._classes is not None:
      sha.update(json.dumps(list(self._classes)).encode())
    for file in self._files:
      sha.update(json.dumps(file[:3]).encode())
    return sha.hexdigest()

  @property
  def names(self) -> list[str]:
    """Returns the paths of the files below the folder."""
    return [file.name for file in self._files]

  @property
  def persons(self) -> np.ndarray:
    """Returns for each file the folder of `path` that it lies in, [n] strings.

    Raises:
      EcosError: A file lies in none.
    """
    folders, slashes, _ = (
      np.array([file.name.partition("/") for file in self._files], np.str_)
      .reshape(-1, 3)
      .T
    )
    if not np.all(slashes == "/"):
      raise errors.EcosError(
        f"{self.path} must have a folder for each person, and all files in "
        "these folders: one lies beside them"
      )
    return folders

  def __len__(self) -> int:
    """Returns the number of samples."""
    return len(self._files)

  def _bytes(self, index: int) -> tuple[bytes, str]:
    """Returns the content of a file, and its path for errors."""
    file = self._files[index]
    path = self.path / file.name
    data, now = _read(path, file.name)
    if now[:3] != file[:3]:
      raise errors.EcosError(
        f"{path} changed since the folder was listed: put the old file back, "
        "or begin anew"
      )
    return data, str(path)

  def images(self, indices: np.ndarray, size: int) -> np.ndarray:
    """Returns the images [n, size, size, 3] uint8 at `indices` [n]."""

    def read(index: int) -> Image.Image:
      return image_files.decode(*self._bytes(index), size)

    return image_files.squares(read, indices, size)

  def labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns the classes [n] int64 at `indices` [n], -1 where unknown."""
    return self._labels[indices]

  def encoded(self, index: int) -> bytes:
    """Returns the file, which becomes PNG if not PNG, JPEG or WebP."""
    return image_files.common(*self._bytes(index))


def _within(file: File, part: tuple[int, int]) -> bool:
  place = int.from_bytes(hashlib.sha256(os.fsencode(file.name)).digest()[:8])
  return part[0] << 64 <= 100 * place < part[1] << 64


def _read(path: Path, name: str) -> tuple[bytes, File]:
  """Returns the content of a file, and its entry in a listing."""
  with path.open("rb") as stream:
    stat = os.fstat(stream.fileno())
    return stream.read(), File(name, stat.st_size, stat.st_mtime_ns)


def _checked(folder: Path, name: str) -> File:
  try:
    data, file = _read(folder / name, name)
  except OSError as error:
    return File(name, 0, 0, error.strerror)
  return file._replace(why=image_files.why_unreadable(data))


def _folders(path: Path) -> Iterator[tuple[str, int, list[os.DirEntry]]]:
  """Yields each folder: its name, time of change, and entries."""
  pending = [""]
  while pending:
    name = pending.pop()
    changed = (path / name).stat().st_mtime_ns
    with os.scandir(path / name) as scan:
      entries = [entry for entry in scan if not entry.name.startswith(".")]
    pending += [
      f"{name}{entry.name}/"
      for entry in entries
      if entry.is_dir(follow_symlinks=False)
    ]
    yield name, changed, entries


def _kept(listing: Path) -> tuple[dict[str, int | None], list[File]] | None:
  """Returns the folders and files of a listing; None if it is no good."""
  try:
    kept = json.loads(listing.read_bytes())
    if kept["version"] == _VERSION:
      return dict(kept["folders"]), [File(*file) for file in kept["files"]]
  except (FileNotFoundError, ValueError, LookupError, TypeError):
    pass
  return None


def _listed(path: Path, listing: Path | None) -> list[File]:
  """Returns the files in the order of their names, and keeps the listing."""
  known: dict[str, File] = {}
  if listing is not None and (found := _kept(listing)) is not None:
    folders, files = found
    # The size of a folder says nothing.
    if all(
      (stat := _stat(path / name)) is not None and stat[1] == changed
      for name, changed in folders.items()
    ):
      return files
    known = {file.name: file for file in files}
  began = time.time_ns()
  folders, files, new = {}, [], []
  links, outside, root = 0, 0, path.resolve()
  for folder, changed, entries in _folders(path):
    # If a folder changed just now, its next change might go unnoticed.
    folders[folder] = changed if began - changed > _SETTLED_NS else None
    for entry in entries:
      name = folder + entry.name
      if entry.is_symlink() and entry.is_dir():
        links += 1
      # A broken link is listed as unreadable; a pipe would be read for ever.
      is_file = entry.is_file() or (entry.is_symlink() and not entry.is_dir())
      if not is_file or not name.lower().endswith(_SUFFIXES):
        continue
      if entry.is_symlink():
        outside += not (path / name).resolve().is_relative_to(root)
      file = known.get(name)
      if file is not None and _stat(path / name) == file[1:3]:
        files.append(file)
        continue
      new.append(name)
  # Only the cloud keeps a listing; a client's number of files is private.
  with (
    futures.ThreadPoolExecutor() as threads,
    tqdm.tqdm(
      total=len(new),
      desc="checking",
      unit=" images",
      disable=True if listing is None else None,
    ) as bar,
  ):
    for file in threads.map(functools.partial(_checked, path), new):
      files.append(file)
      bar.update()
  files.sort()
  # No names: a client's files are private, and stderr may be a log.
  bad = sum(file.why is not None for file in files)
  for count, what in (
    (bad, "cannot be read as images and are left out"),
    (outside, "are links to files outside of the folder, which are used"),
    (
      links,
      "are links to folders and are left out: name such a folder as a source "
      "of its own, or put it in the place of the link",
    ),
  ):
    if count:
      logging.warning("%s: %d of the files %s", path, count, what)
  # The second of several processes finds the listing as it should be.
  if listing is not None and files != list(known.values()):
    kept = {"version": _VERSION, "folders": folders, "files": files}
    files_lib.write(listing, json.dumps(kept).encode())
  return files


def _stat(path: Path) -> tuple[int, int] | None:
  """Returns size and time of change; None if there is no such file."""
  try:
    stat = path.stat()
  except OSError:
    return None
  return stat.st_size, stat.st_mtime_ns

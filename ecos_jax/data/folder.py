"""Images in a folder and its subfolders, by path.

A file that was changed in place is noticed when it is used.
"""

from collections.abc import Sequence
import copy
import functools
import hashlib
import json
import os
from pathlib import Path
import re

import numpy as np
from PIL import Image

from ecos_jax import errors
from ecos_jax import files as files_lib
from ecos_jax.config import classes as classes_lib
from ecos_jax.config import limits
from ecos_jax.data import images as image_files
from ecos_jax.data import listing as listing_lib

_NUMBER = re.compile(r"[0-9]+")


class FolderSource:
  """Images in a folder and its subfolders, by path.

  The label of a file is the position of its folder's name in `classes`, or that
  name as a number; otherwise it is -1. So no label depends on other files. A
  client's privacy needs this: if the existing folders were numbered, one image
  more could change the labels of all.

  Hidden files are left out, and so are links to folders, with a warning: they
  could form a cycle. Links to files are followed, with a warning if they lead
  out of the folder.

  Attributes:
    path: The folder.
    unreadable: Files that are left out because they cannot be read.
    others: Number of the files that do not end as images do, by suffix.
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
    ground: str = image_files.WHITE,
  ):
    """Lists the folder.

    Args:
      path: The folder.
      classes: Names of the folders that are classes, in the order of their
        labels, or `classes.NUMBERS`: the names are numbers. Must not be derived
        from private data. None: there are no classes.
      part: The first and the last percent of the files to take, in the order of
        a hash of their names: no file changes the place of another.
      listing: File that keeps the listing; None: it is not kept.
      may_be_empty: Whether there may be no image.
      ground: As in `images.rgb`.

    Raises:
      EcosError: The path is no folder, the folder holds no image, `classes`
        names a class twice, or a number is too large for a class.
    """
    if not path.is_dir():
      raise errors.EcosError(f"{path} is not a folder")
    self.name = files_lib.printable(path.resolve().name)
    if part != (0, 100):
      self.name += f"[{part[0]}%:{part[1]}%]"
    self.path = path
    self._ground = ground
    listed, self.others = listing_lib.listed(path, listing)
    files = [file for file in listed if _within(file, part)]
    self.unreadable = [file for file in files if file.why is not None]
    self._files = [file for file in files if file.why is None]
    if not self._files and not may_be_empty:
      raise errors.EcosError(
        f"{path} holds no image ({', '.join(image_files.SUFFIXES)})"
        + self._but()
      )
    self._label_by(None if classes is None else classes_lib.named(classes))

  def of_classes(self, classes: Sequence[str]) -> "FolderSource":
    """Returns the same files with other classes; see `__init__`."""
    other = copy.copy(self)
    other.__dict__.pop("digest", None)
    other._label_by(classes_lib.named(classes))
    return other

  def _label_by(self, classes: tuple[str, ...] | None) -> None:
    self._classes = classes
    folders = [file.name.rpartition("/")[0] for file in self._files]
    labels = {folder: self._label(folder) for folder in set(folders)}
    self._labels = np.array([labels[folder] for folder in folders], np.int64)
    named = classes is not None and classes != classes_lib.NUMBERS
    self.classes = (
      len(classes) if named else int(self._labels.max(initial=-1)) + 1
    )

  def _but(self) -> str:
    """Returns what a folder without images holds instead, as a text."""
    held = [listing_lib.suffixes(self.others)] if self.others else []
    if self.unreadable:
      file = self.unreadable[0]
      held.append(
        f"{len(self.unreadable):,} that cannot be read: "
        f"{files_lib.printable(file.name)}: {file.why}"
      )
    return f", but {'; '.join(held)}" if held else ""

  def _label(self, folder: str) -> int:
    if self._classes is None:
      return -1
    if self._classes == classes_lib.NUMBERS:
      if not _NUMBER.fullmatch(folder):
        return -1
      if len(folder) < 10 and int(folder) < limits.MAX_CLASSES:
        return int(folder)
      # The name is not told: a client's folders are private.
      raise errors.EcosError(
        f"`classes`=numbers: the name of a folder in {self.path} is a number "
        f"over {limits.MAX_CLASSES - 1}, which is no class: name the classes"
      )
    return classes_lib.place(self._classes, folder)

  @property
  def class_names(self) -> set[str]:
    """Returns the names of the folders that hold images: possible classes."""
    folders = {file.name.rpartition("/")[0] for file in self._files}
    names = {classes_lib.normal(f.rpartition("/")[2]) for f in folders}
    return names - {""}

  @functools.cached_property
  def digest(self) -> str:
    """Returns a sha256 over the files' names and contents, and the classes."""
    sha = hashlib.sha256()
    if self._classes is not None:
      sha.update(json.dumps(self._classes).encode())
    for file in self._files:
      sha.update(json.dumps([file.name, file.digest]).encode())
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

  def keys(self, indices: np.ndarray) -> list[str]:
    """Returns the paths of the files at `indices` [n]."""
    return [self._files[i].name for i in indices]

  def fingerprints(self) -> np.ndarray:
    """Returns 16 bytes of the sha256 of each file, [n] V16."""
    return image_files.fingerprints(file.digest for file in self._files)

  def _bytes(self, index: int) -> tuple[bytes, str]:
    """Returns the content of a file, and its path for errors."""
    file = self._files[index]
    path = self.path / file.name
    data = listing_lib.read(self.path, file)
    if data is None:
      raise errors.EcosError(
        f"{path} changed since the folder was listed: put the old file back, "
        "or begin anew"
      )
    return data, str(path)

  def images(self, indices: np.ndarray, size: int) -> np.ndarray:
    """Returns the images [n, size, size, 3] uint8 at `indices` [n]."""

    def read(index: int) -> Image.Image:
      return image_files.decode(*self._bytes(index), size)

    return image_files.squares(read, indices, size, self._ground)

  def labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns the classes [n] int64 at `indices` [n], -1 where unknown."""
    return self._labels[indices]

  def encoded(self, index: int) -> bytes:
    """Returns the file, which becomes PNG if not PNG, JPEG or WebP."""
    return image_files.common(*self._bytes(index), self._ground)


def _within(file: listing_lib.File, part: tuple[int, int]) -> bool:
  place = int.from_bytes(hashlib.sha256(os.fsencode(file.name)).digest()[:8])
  return part[0] << 64 <= 100 * place < part[1] << 64

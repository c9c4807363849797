"""Image files that were all read once, and a record kept of each.

A record has the name of an image, its place, its class, the digest of its
bytes, and why it cannot be read, if so; such images are left out.
"""

import abc
from collections.abc import Mapping, Sequence
import copy
import functools
import hashlib
import json
import re
from typing import NamedTuple, Self

from absl import logging
import numpy as np

from ecos_jax import errors
from ecos_jax import files as files_lib
from ecos_jax.config import classes as classes_lib
from ecos_jax.config import limits
from ecos_jax.data import images as image_files
from ecos_jax.data import listing as listing_lib

_AT_ONCE = 64  # images whose files are in memory
READERS = 16  # threads, which wait for a bucket
_NUMBER = re.compile(r"[0-9]+")


class Record(NamedTuple):
  """What is kept of an image; the fields are those of `containers.Found`."""

  name: str
  place: tuple[int, ...]
  digest: str
  label: int
  label_name: str | None
  why: str | None


class RecordSource(abc.ABC):
  """Images by their records; a child class reads their files.

  The label of an image depends on it alone. A client's privacy needs this: if
  the classes that exist were numbered, one image more could change the labels
  of all.

  Attributes:
    name: The source's name.
    unreadable: Records of images, and of containers, that cannot be read.
    others: Number of the files that are no images by their names, by suffix.
    classes: Number of classes.
  """

  def __init__(
    self,
    name: str,
    records: Sequence[Record],
    classes: Sequence[str] | None = None,
    *,
    place: str | None = None,
    others: Mapping[str, int] | None = None,
    may_be_empty: bool = False,
    ground: str = image_files.WHITE,
  ):
    """Keeps the records.

    Args:
      name: The source's name.
      records: In order; those with `why` are left out.
      classes: Names of classes, in the order of their labels. Must not be
        derived from private data. None: labels are the numbers in the records.
        `classes.NUMBERS`: so they are, or the names of folders that are
        numbers.
      place: What errors call the source; None: its name.
      others: The attribute.
      may_be_empty: Whether there may be no image.
      ground: As in `images.rgb`.

    Raises:
      EcosError: There is no image that can be read, `classes` names a class
        twice, or a number is too large for a class.
    """
    self.name = name
    self._place = place or name
    self.others = dict(others or {})
    self.unreadable = [r for r in records if r.why is not None]
    self._records = [r for r in records if r.why is None]
    self._ground = ground
    named = None if classes is None else classes_lib.named(classes)
    # No names: a client's files are private.
    for count, what in (
      (len(self.unreadable), "cannot be read as images and are left out"),
      (
        sum(self.others.values()),
        "are no images by their names and are left out: "
        + listing_lib.suffixes(self.others),
      ),
    ):
      if count:
        logging.warning("%s: %d of the files %s", self._place, count, what)
    if not self._records and not may_be_empty:
      raise errors.EcosError(
        f"{self._place} holds no image ({', '.join(image_files.SUFFIXES)})"
        + self._but()
      )
    self._label_by(named)

  def of_classes(self, classes: Sequence[str]) -> Self:
    """Returns the same images with other classes; see `__init__`."""
    other = copy.copy(self)
    other.__dict__.pop("digest", None)
    other._label_by(classes_lib.named(classes))
    return other

  def _label_by(self, classes: tuple[str, ...] | None) -> None:
    self._classes = classes
    kinds = [(r.label, r.label_name or "") for r in self._records]
    labels = {kind: self._label(*kind) for kind in set(kinds)}
    self._labels = np.array([labels[kind] for kind in kinds], np.int64)
    named = classes is not None and classes != classes_lib.NUMBERS
    self.classes = (
      len(classes) if named else int(self._labels.max(initial=-1)) + 1
    )

  def _label(self, label: int, name: str) -> int:
    if self._classes is None:
      return label
    if self._classes != classes_lib.NUMBERS:
      return classes_lib.place(self._classes, name)
    name = name.rpartition("/")[2]
    if label >= 0 or not _NUMBER.fullmatch(name):
      return label
    if len(name) < 10 and int(name) < limits.MAX_CLASSES:
      return int(name)
    # The name is not told: a client's folders are private.
    raise errors.EcosError(
      f"`classes`=numbers: the name of a folder in {self._place} is a number "
      f"over {limits.MAX_CLASSES - 1}. Votes are counted for each class from 0 "
      "to the largest, so none may be larger: name the classes instead"
    )

  def _but(self) -> str:
    """Returns what a source without images holds instead, as a text."""
    held = [listing_lib.suffixes(self.others)] if self.others else []
    if self.unreadable:
      first = self.unreadable[0]
      held.append(
        f"{len(self.unreadable):,} that cannot be read: "
        f"{files_lib.printable(first.name)}: {first.why}"
      )
    return f", but {'; '.join(held)}" if held else ""

  @property
  def class_names(self) -> set[str]:
    """Returns the names that classes of these images can have."""
    found = {r.label_name for r in self._records if r.label_name}
    return {classes_lib.normal(n.rpartition("/")[2]) for n in found} - {""}

  @functools.cached_property
  def digest(self) -> str:
    """Returns a sha256 over the names, bytes and classes of the images."""
    sha = hashlib.sha256(json.dumps(self._classes).encode())
    for record, label in zip(self._records, self._labels, strict=True):
      text = json.dumps([record.name, record.digest, int(label)])
      sha.update(text.encode())
    return sha.hexdigest()

  def __len__(self) -> int:
    """Returns the number of samples."""
    return len(self._records)

  def keys(self, indices: np.ndarray) -> list[str]:
    """Returns the names of the images at `indices` [n]."""
    return [self._records[i].name for i in indices]

  def fingerprints(self) -> np.ndarray:
    """Returns 16 bytes of the sha256 of each image's file, [n] V16."""
    return image_files.fingerprints(r.digest for r in self._records)

  @abc.abstractmethod
  def _read(self, indices: np.ndarray) -> list[bytes]:
    """Returns the files of the images at `indices` [n].

    Raises:
      EcosError: They cannot be read.
    """

  def _files(self, indices: np.ndarray) -> list[bytes]:
    """Returns the files of the images at `indices` [n], as they were."""
    found = self._read(indices)
    for index, file in zip(indices, found, strict=True):
      record = self._records[index]
      if image_files.digest(file) != record.digest:
        raise errors.EcosError(
          f"{record.name} of {self._place} changed since it was first read: "
          "put the old file back, or begin anew"
        )
    return found

  def images(self, indices: np.ndarray, size: int) -> np.ndarray:
    """Returns the images [n, size, size, 3] uint8 at `indices` [n]."""
    images = np.empty((len(indices), size, size, 3), np.uint8)
    for start in range(0, len(indices), _AT_ONCE):
      some = np.asarray(indices[start : start + _AT_ONCE])
      data, names = self._files(some), self.keys(some)
      images[start : start + len(some)] = image_files.squares(
        lambda i, d=data, n=names: image_files.decode(d[i], n[i], size),
        np.arange(len(some)),
        size,
        self._ground,
      )
    return images

  def labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns the classes [n] int64 at `indices` [n], -1 where unknown."""
    return self._labels[indices]

  def encoded(self, index: int) -> bytes:
    """Returns the file, which becomes PNG if not PNG, JPEG or WebP."""
    [data] = self._files(np.array([index]))
    return image_files.common(data, self._records[index].name, self._ground)

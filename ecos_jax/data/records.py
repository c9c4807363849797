"""Images that lie in containers: tar files, tables, or the objects of a bucket.

All containers are read once, one after the other: the name of each image, its
place, its class, the digest of its bytes, and why it cannot be read, if so;
such images are left out. What was found can be kept in a file; the next time,
only new or changed containers are read.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple, Protocol

from absl import logging
import numpy as np
import tqdm

from ecos_jax import errors
from ecos_jax import files as files_lib
from ecos_jax import threads
from ecos_jax.config import classes as classes_lib
from ecos_jax.config import limits
from ecos_jax.data import images as image_files

_VERSION = [1, *image_files.SUFFIXES]
MAX_BYTES = 2**28  # of the file of one image
_AT_ONCE = 64  # images whose files are in memory
_READERS = 16  # threads, which wait for a bucket
_MAX_DIGITS = 10


class Found(NamedTuple):
  """An image in a container.

  Attributes:
    name: Unique in the source.
    place: Where it is in the container.
    data: The bytes of its file; None: they are at `place`, not yet read.
    label: Its class as a number, -1 if it has none.
    label_name: Its class by name.
    why: Why it cannot be read; None if it can.
  """

  name: str
  place: tuple[int, ...]
  data: bytes | None = None
  label: int = -1
  label_name: str | None = None
  why: str | None = None

  def labelled(self, label: object) -> "Found":
    """Returns the image with a class, if it is a number or a name."""
    if isinstance(label, str):
      return self._replace(label_name=label)
    if type(label) is int and 0 <= label < limits.MAX_CLASSES:
      return self._replace(label=label)
    return self


class Record(NamedTuple):
  """What is kept of an image; the fields are those of `Found`."""

  name: str
  place: tuple[int, ...]
  digest: str
  label: int
  label_name: str | None
  why: str | None


class Container(Protocol):
  """A file that holds images.

  Attributes:
    name: Its path below the folder of the source.
    version: A text that changes with the file.
  """

  name: str
  version: str

  def scan(self) -> Iterator[Found]:
    """Yields all images in order, reading the container once.

    Raises:
      OSError, ValueError: It is damaged; what was yielded is good.
    """

  def read(self, places: Sequence[tuple[int, ...]]) -> list[bytes]:
    """Returns the files of some images.

    Raises:
      OSError, ValueError: They cannot be read.
    """


class RecordSource:
  """Images in containers, in the order of these.

  Attributes:
    name: The source's name.
    unreadable: Images, and containers, that cannot be read.
    classes: Number of classes.
  """

  def __init__(
    self,
    name: str,
    containers: Sequence[Container],
    classes: Sequence[str] | None = None,
    *,
    listing: Path | None = None,
    may_be_empty: bool = False,
    ground: str = image_files.WHITE,
  ):
    """Reads the containers, or what was kept of them.

    Args:
      name: The source's name.
      containers: In order.
      classes: Names of classes, in the order of their labels. None: labels are
        the numbers in the containers. `classes.NUMBERS`: so they are, or the
        numbers that folders of a bucket have as names.
      listing: File that keeps what was found; None: nothing is kept.
      may_be_empty: Whether there may be no image.
      ground: As in `images.rgb`.

    Raises:
      EcosError: There is no image that can be read, or `classes` names a class
        twice.
    """
    self.name = name
    self._containers = containers
    self._classes = None if classes is None else classes_lib.named(classes)
    self._ground = ground
    found = _listed(containers, listing)
    self.unreadable = [r for rs in found for r in rs if r.why is not None]
    if self.unreadable:
      logging.warning(
        "%s: %d of the images cannot be read and are left out",
        name,
        len(self.unreadable),
      )
    self._records = [r for rs in found for r in rs if r.why is None]
    self._container_of = np.repeat(
      np.arange(len(found)),
      [sum(r.why is None for r in records) for records in found],
    )
    if not self._records and not may_be_empty:
      raise errors.EcosError(
        f"{name} holds no image that can be read"
        + (f": {self.unreadable[0].why}" if self.unreadable else "")
      )
    self._labels = np.array([self._label(r) for r in self._records], np.int64)
    self.classes = (
      int(self._labels.max(initial=-1)) + 1 if classes is None else len(classes)
    )

  def _label(self, record: Record) -> int:
    if self._classes is None:
      return record.label
    name = classes_lib.normal(record.label_name or "")
    if self._classes == classes_lib.NUMBERS:
      if record.label < 0 and name.isdecimal() and len(name) < _MAX_DIGITS:
        return Found(name, ()).labelled(int(name)).label
      return record.label
    return classes_lib.place(self._classes, name)

  @property
  def class_names(self) -> set[str]:
    """Returns the names of classes that the containers have."""
    names = {r.label_name for r in self._records if r.label_name}
    return {classes_lib.normal(name) for name in names}

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

  def _files(self, indices: np.ndarray) -> list[bytes]:
    """Returns the files of the images at `indices` [n]."""
    data = [b""] * len(indices)
    holders = self._container_of[indices]

    def read(holder: int) -> None:
      container = self._containers[holder]
      rows = np.flatnonzero(holders == holder).tolist()
      records = [self._records[indices[row]] for row in rows]
      try:
        found = container.read([record.place for record in records])
      except (OSError, ValueError) as error:
        raise errors.EcosError(
          f"cannot read from {container.name} of {self.name}: {error}"
        ) from error
      for row, record, file in zip(rows, records, found, strict=True):
        if image_files.digest(file) != record.digest:
          raise errors.EcosError(
            f"{record.name} of {self.name} changed since it was first read: "
            "put the old file back, or begin anew"
          )
        data[row] = file

    with futures.ThreadPoolExecutor(_READERS) as pool:
      list(pool.map(read, np.unique(holders).tolist()))
    return data

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


def _scanned(container: Container) -> Iterator[tuple[Container, Found]]:
  """Yields what a container holds, and last why it cannot be read, if so."""
  try:
    for found in container.scan():
      yield container, found
  except (OSError, ValueError) as error:
    yield container, Found(container.name, (), b"", why=f"damaged: {error}")


def _checked(container: Container, found: Found) -> Record:
  data, why = found.data, found.why
  try:
    if why is None and data is None:
      [data] = container.read([found.place])
  except OSError as error:
    why = str(error)
  data = data or b""
  if len(data) > MAX_BYTES:
    why = f"more than {MAX_BYTES:,} bytes"
  if why is None:
    why = image_files.why_unreadable(data)
  return Record(
    *(found.name, found.place, image_files.digest(data)),
    *(found.label, found.label_name, why),
  )


def _kept(listing: Path) -> dict[str, tuple[str, list[Record]]]:
  """Returns version and records of the containers in a listing."""
  try:
    kept = json.loads(listing.read_bytes())
    if kept["version"] == _VERSION:
      return {
        name: (version, [Record(r[0], tuple(r[1]), *r[2:]) for r in records])
        for name, (version, records) in kept["containers"].items()
      }
  except (FileNotFoundError, ValueError, LookupError, TypeError):
    pass
  return {}


def _listed(
  containers: Sequence[Container], listing: Path | None
) -> list[list[Record]]:
  """Returns the records of each container, and keeps the listing."""
  known = _kept(listing) if listing is not None else {}
  kept = {
    c.name: known[c.name]
    for c in containers
    if c.name in known and known[c.name][0] == c.version
  }
  new = [c for c in containers if c.name not in kept]
  kept |= {c.name: (c.version, []) for c in new}
  # Only the cloud keeps a listing; a client's number of images is private.
  with tqdm.tqdm(
    desc="checking",
    unit=" images",
    disable=True if listing is None or not new else None,
  ) as bar:
    images = (image for container in new for image in _scanned(container))
    for name, record in threads.ahead(
      lambda image: (image[0].name, _checked(*image)),
      images,
      _READERS + (os.cpu_count() or 1),
    ):
      kept[name][1].append(record)
      bar.update()
  if listing is not None and (new or kept.keys() != known.keys()):
    content = {"version": _VERSION, "containers": kept}
    files_lib.write(listing, json.dumps(content).encode())
  return [kept[container.name][1] for container in containers]

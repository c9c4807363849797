"""Images in containers: tar files, tables, or the objects of a bucket.

Their records can be kept in a file; the next time, only new or changed
containers are read.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tqdm

from ecos_jax import errors
from ecos_jax import files as files_lib
from ecos_jax import threads
from ecos_jax.config import limits
from ecos_jax.data import images as image_files
from ecos_jax.data import records

_VERSION = [1, *image_files.SUFFIXES]
MAX_BYTES = 2**28  # of the file of one image


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


class ContainerSource(records.RecordSource):
  """Images in containers, in the order of these."""

  def __init__(
    self,
    name: str,
    containers: Sequence[Container],
    *,
    listing: Path | None = None,
    **options: Any,
  ):
    """Reads the containers, or what was kept of them.

    Args:
      name: The source's name.
      containers: In order.
      listing: File that keeps what was found; None: nothing is kept.
      **options: As in `records.RecordSource`.

    Raises:
      EcosError: As in `records.RecordSource`.
    """
    found = _listed(containers, listing)
    self._containers = containers
    self._container_of = np.repeat(
      np.arange(len(found)),
      [sum(r.why is None for r in records) for records in found],
    )
    super().__init__(name, list(itertools.chain(*found)), **options)

  def _read(self, indices: np.ndarray) -> list[bytes]:
    data = [b""] * len(indices)
    holders = self._container_of[indices]

    def read(holder: int) -> None:
      container = self._containers[holder]
      rows = np.flatnonzero(holders == holder).tolist()
      try:
        found = container.read([self._records[indices[r]].place for r in rows])
      except (OSError, ValueError) as error:
        raise errors.EcosError(
          f"cannot read from {container.name} of {self.name}: {error}"
        ) from error
      for row, file in zip(rows, found, strict=True):
        data[row] = file

    with futures.ThreadPoolExecutor(records.READERS) as pool:
      list(pool.map(read, np.unique(holders).tolist()))
    return data


def _scanned(container: Container) -> Iterator[tuple[Container, Found]]:
  """Yields what a container holds, and last why it cannot be read, if so."""
  try:
    for found in container.scan():
      yield container, found
  except (OSError, ValueError) as error:
    yield container, Found(container.name, (), b"", why=f"damaged: {error}")


def _checked(container: Container, found: Found) -> records.Record:
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
  return records.Record(
    *(found.name, found.place, image_files.digest(data)),
    *(found.label, found.label_name, why),
  )


def _kept(listing: Path) -> dict[str, tuple[str, list[records.Record]]]:
  """Returns version and records of the containers in a listing."""
  try:
    kept = json.loads(listing.read_bytes())
    if kept["version"] == _VERSION:
      return {
        name: (
          version,
          [records.Record(r[0], tuple(r[1]), *r[2:]) for r in found],
        )
        for name, (version, found) in kept["containers"].items()
      }
  except (FileNotFoundError, ValueError, LookupError, TypeError):
    pass
  return {}


def _listed(
  containers: Sequence[Container], listing: Path | None
) -> list[list[records.Record]]:
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
      records.READERS + (os.cpu_count() or 1),
    ):
      kept[name][1].append(record)
      bar.update()
  if listing is not None and (new or kept.keys() != known.keys()):
    content = {"version": _VERSION, "containers": kept}
    files_lib.write(listing, json.dumps(content).encode())
  return [kept[container.name][1] for container in containers]

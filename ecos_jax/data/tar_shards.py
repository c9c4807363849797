"""Tar files of images, as WebDataset writes them; none is unpacked.

Files of one sample stand side by side and have one name but for the suffix:
`000.jpg`, `000.cls`, `000.json`. The class is the number or the name in `.cls`,
or else the `label` in `.json`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import json
import tarfile
from typing import IO, Any

from ecos_jax.data import containers
from ecos_jax.data import images as image_files
from ecos_jax.data import locations

_CLASS = (".cls", ".json")
_MAX_CLASS_BYTES = 2**20
_MAX_HEADER_BYTES = 2**20
_MAX_DIGITS = 10


class _Bounded:
  """A stream that reads a little at a time, whatever the tar file says."""

  def __init__(self, stream: IO[bytes]):
    self._stream = stream
    self.seek, self.tell = stream.seek, stream.tell

  def read(self, size: int) -> bytes:
    if size > _MAX_HEADER_BYTES:
      raise tarfile.ReadError(f"a header of {size:,} bytes")
    return self._stream.read(size)


class TarShard:
  """A tar file."""

  def __init__(self, file: locations.File):
    """Opens nothing yet."""
    self.file, self.name, self.version = file, file.name, file.version

  def scan(self) -> Iterator[containers.Found]:
    """Yields the images; see `containers.Container`."""
    with self.file.fs.open(self.file.path, "rb") as stream:
      for image, classes in self._samples(stream):
        if image is not None:
          yield image.labelled(_class(classes))

  def _samples(
    self, stream: Any
  ) -> Iterator[tuple[containers.Found | None, dict[str, bytes]]]:
    """Yields the image of each sample, if it has one, and its classes."""
    stem, image, classes = None, None, {}
    damage = None
    try:
      for member in _members(stream):
        path, suffix = _split(member.name)
        if path != stem:
          yield image, classes
          stem, image, classes = path, None, {}
        if suffix in image_files.SUFFIXES and image is None:
          image = self._image(member, stream)
        elif suffix in _CLASS and member.size <= _MAX_CLASS_BYTES:
          classes[suffix] = _content(member, stream)
    except ValueError as error:
      damage = error
    yield image, classes
    if damage is not None:
      raise damage

  def _image(self, member: tarfile.TarInfo, stream: Any) -> containers.Found:
    name = f"{self.name}/{member.name}"
    place = member.offset_data, member.offset_data + member.size
    why = None
    if member.size > containers.MAX_BYTES:
      why = f"more than {containers.MAX_BYTES:,} bytes"
    elif member.issparse():
      why = "stored with holes"
    data = b"" if why else _content(member, stream)
    return containers.Found(name, place, data, why=why)

  def read(self, places: Sequence[tuple[int, ...]]) -> list[bytes]:
    """Returns the files of some images; see `containers.Container`."""
    starts, ends = zip(*places, strict=True)
    return self.file.read(starts, ends)


def _members(stream: Any) -> Iterator[tarfile.TarInfo]:
  """Yields the regular files of a tar file, while it is read.

  Raises:
    ValueError: It is damaged, or compressed.
  """
  try:
    with tarfile.open(fileobj=_Bounded(stream), mode="r:") as tar:  # pyrefly: ignore
      while (member := tar.next()) is not None:
        # tarfile would keep all headers in memory.
        tar.members = []  # pyrefly: ignore
        if member.isfile():
          yield member
      stream.seek(tar.offset)  # pyrefly: ignore
      if not stream.read(1):
        raise tarfile.ReadError("it ends without an end mark")
  except (tarfile.TarError, EOFError) as error:
    raise ValueError(f"{error}; a shard must be a plain, whole .tar") from error


def _content(member: tarfile.TarInfo, stream: Any) -> bytes:
  stream.seek(member.offset_data)
  return stream.read(member.size)


def _split(path: str) -> tuple[str, str]:
  """Returns the name of a sample, and the suffix of one of its files."""
  folder, slash, name = path.rpartition("/")
  stem, dot, suffix = name.partition(".")
  return folder + slash + stem, (dot + suffix).lower()


def _class(files: dict[str, bytes]) -> object:
  """Returns the class that the files of a sample give, if they do."""
  if ".cls" in files:
    text = files[".cls"].decode("utf-8", "replace").strip()
    return int(text) if text.isdecimal() and len(text) < _MAX_DIGITS else text
  with contextlib.suppress(LookupError, ValueError, RecursionError):
    found = json.loads(files[".json"])
    return found["label"] if isinstance(found, dict) else found
  return None


def open_shards(pattern: str, **options: Any) -> containers.ContainerSource:
  """Returns the images in tar files.

  Args:
    pattern: As in `locations.find`.
    **options: As in `containers.ContainerSource`.

  Raises:
    EcosError: There is no file or no image.
  """
  found = locations.find(pattern, (".tar",))
  shards = [TarShard(file) for file in found.files]
  return containers.ContainerSource(found.name, shards, **options)

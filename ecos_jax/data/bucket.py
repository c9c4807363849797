"""Image files in a bucket, below a URL: each is a container of one image."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

from ecos_jax.data import containers
from ecos_jax.data import images as image_files
from ecos_jax.data import listing
from ecos_jax.data import locations


class Object:
  """A file that is one image; its class is named by its folder."""

  def __init__(self, file: locations.File):
    """Opens nothing yet."""
    self.file, self.name, self.version = file, file.name, file.version

  def scan(self) -> Iterator[containers.Found]:
    """Yields the image, not yet read; see `containers.Container`."""
    folder = self.name.rpartition("/")[0]
    yield containers.Found(self.name, ()).labelled(folder)

  def read(self, places: Sequence[tuple[int, ...]]) -> list[bytes]:
    """Returns the file, as often as there are places."""
    return [self.file.fs.cat_file(self.file.path)] * len(places)


def open_folder(url: str, **options: Any) -> containers.ContainerSource:
  """Returns the images below a URL, in natural order of their paths.

  Args:
    url: A folder's URL, of a kind that fsspec knows.
    **options: As in `containers.ContainerSource`.

  Raises:
    EcosError: There is no image, or the package for the URL is missing.
  """
  found = locations.find(url, ("",), may_be_empty=True)
  images, others = [], collections.Counter[str]()
  for file in found.files:
    if file.name.lower().endswith(image_files.SUFFIXES):
      images.append(Object(file))
    else:
      others[listing.suffix(file.name)] += 1
  return containers.ContainerSource(
    found.name, images, others=others, **options
  )

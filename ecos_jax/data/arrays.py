"""Images in arrays: in memory, or an .npy or .npz file."""

from collections.abc import Callable
import functools
import hashlib
from pathlib import Path

import numpy as np

from ecos_jax import errors
from ecos_jax import files
from ecos_jax.config import limits
from ecos_jax.data import array_files
from ecos_jax.data import images as image_files


class ArraySource:
  """Images in an array, in memory or memory-mapped."""

  def __init__(
    self,
    name: str,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    identity: Callable[[], str] | None = None,
    persons: np.ndarray | None = None,
  ):
    """Keeps the arrays without copying them.

    Args:
      name: The name of the source.
      images: [n, h, w, 3] uint8; grey images are [n, h, w] or [n, h, w, 1].
      labels: [n] integers; None if unknown.
      identity: Returns the digest of the source, by default a sha256 of the
        arrays.
      persons: [n] integers or strings, whose the images are; None if unknown.

    Raises:
      EcosError: An array has another type or shape.
    """
    shape = images.shape
    grey_or_rgb = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    # Errors contain no count: a client's number of samples is private.
    if images.dtype != np.uint8 or not grey_or_rgb or 0 in shape[1:]:
      raise errors.EcosError(
        f"the images of {name} must be uint8 [n, h, w, 3], got {images.dtype} "
        f"with {list(shape[1:])} after n"
      )
    if labels is not None:
      labels = _checked_labels(name, labels, len(images))
    self.name = name
    self.persons = persons
    self._images = images
    self._labels = labels
    self._identity = identity

  @property
  def classes(self) -> int:
    """Returns the largest label plus one; 0 without labels."""
    return 0 if self._labels is None else int(self._labels.max(initial=-1)) + 1

  @functools.cached_property
  def digest(self) -> str:
    """Returns what identifies the content: by default a sha256 of it."""
    if self._identity is not None:
      return self._identity()
    sha = hashlib.sha256()
    for array in (self._images, self._labels):
      if array is not None:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()

  def __len__(self) -> int:
    """Returns the number of samples."""
    return len(self._images)

  def images(self, indices: np.ndarray, size: int) -> np.ndarray:
    """Returns the images [n, size, size, 3] uint8 at `indices` [n]."""
    images = self._images[indices]
    if images.shape[1:3] != (size, size):
      return image_files.squares(
        lambda row: image_files.from_array(images[row]),
        np.arange(len(images)),
        size,
      )
    if images.ndim == 3:
      images = images[..., None]
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))

  def labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns the classes [n] int64 at `indices` [n], -1 where unknown."""
    if self._labels is None:
      return np.full(len(indices), -1, np.int64)
    return self._labels[indices]

  def encoded(self, index: int) -> bytes:
    """Returns the image as a PNG file."""
    return image_files.png(image_files.from_array(self._images[index]))


def _checked_labels(name: str, labels: np.ndarray, size: int) -> np.ndarray:
  """Returns the labels of a source as [n] int64, -1 where unknown.

  Raises:
    EcosError: They are no such array. The text has no count: a client's number
      of samples is private.
  """
  if labels.shape == (size, 1):  # as Keras has them
    labels = labels[:, 0]
  if labels.dtype.kind not in "biu" or labels.shape != (size,):
    raise errors.EcosError(
      f"the labels of {name} must be [n] integers, as many as the images, "
      f"got {labels.dtype} with {list(labels.shape[1:])} after n"
    )
  if labels.max(initial=0) >= limits.MAX_CLASSES:
    raise errors.EcosError(
      f"the labels of {name} must be below {limits.MAX_CLASSES}: they are the "
      "numbers of classes, from 0"
    )
  return labels.astype(np.int64)


def open_arrays(path: Path, kept: Path | None = None) -> ArraySource:
  """Returns the images in an array file, and its labels if it has some.

  Args:
    path: A .npy file of images, or an .npz file with the array `images`.
    kept: As in `files.content_digest`.

  Raises:
    EcosError: It cannot be read, or has other arrays.
  """
  arrays = array_files.read(path)
  if "images" not in arrays:
    raise errors.EcosError(
      f"{path} has no array 'images', but {', '.join(arrays) or 'none'}"
    )
  return ArraySource(
    files.printable(path.stem),
    arrays["images"],
    arrays.get("labels"),
    identity=functools.partial(files.content_digest, path, kept),
    persons=arrays.get("persons"),
  )

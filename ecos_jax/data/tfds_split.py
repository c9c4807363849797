"""A split of a TFDS dataset as a source of images."""

from collections.abc import Sequence
import functools
from typing import Any

import numpy as np
from PIL import Image

from ecos_jax import errors
from ecos_jax.data import images as image_files


class TfdsSource:
  """A split of a TFDS dataset with the feature `image`, and perhaps `label`."""

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str | None = None,
    classes: Sequence[str] | None = None,
  ):
    """Opens the dataset; TFDS downloads it first if need be.

    Args:
      name: TFDS's name of the dataset: `mnist`, `domainnet/real:1.0.0`.
      split: Such as `train` or `train[:10%]`.
      data_dir: Where TFDS keeps its data; None: TFDS's default.
      classes: Names of classes of the dataset, in the order of their labels
        here; samples of other classes get label -1. None: the dataset's labels.

    Raises:
      EcosError: TFDS cannot provide the dataset, or it has no images or lacks a
        class.
    """
    # Imported here: it takes seconds, and most clients do not need it.
    import tensorflow_datasets as tfds

    self.name = f"{name}:{split}"
    open_split: Any = functools.partial(
      tfds.data_source, name, split=split, data_dir=data_dir
    )
    # Images are decoded in this module, so that files can be copied too.
    try:
      source = open_split(decoders={"image": tfds.decode.SkipDecoding()})
      try:
        source[0]
      except ImportError:
        # The random images of TFDS's mock_data have no stored files.
        source = open_split()
    # TFDS's builders have no common class of errors.
    except Exception as error:
      why = str(error).partition("\n")[0]
      if isinstance(error, ImportError):
        why += ", which TFDS needs to prepare a dataset but not to read it"
      raise errors.EcosError(f"cannot open tfds:{self.name}: {why}") from error
    self._source = source
    info = source.dataset_info
    if "image" not in info.features:
      raise errors.EcosError(
        f"the TFDS dataset {name} has no feature 'image' but "
        f"{', '.join(info.features)}"
      )
    self._labelled = "label" in info.features
    self.digest = f"{info.full_name}:{split}"
    label = info.features["label"] if self._labelled else None
    # Label i of the dataset is class _classes[i].
    self._classes = None
    self.classes = getattr(label, "num_classes", None) or 0
    if classes is not None:
      names = getattr(label, "names", [])
      unknown = [name for name in classes if name not in names]
      if unknown:
        raise errors.EcosError(
          f"the TFDS dataset {name} has no class {unknown[0]}"
        )
      places = {name: place for place, name in enumerate(classes)}
      self._classes = np.array([places.get(name, -1) for name in names])
      self.classes = len(classes)
      self.digest += f":{','.join(classes)}"

  def __len__(self) -> int:
    """Returns the number of samples."""
    return len(self._source)

  def _read(self, index: int, size: int | None = None) -> Image.Image:
    image = self._source[index]["image"]
    if isinstance(image, bytes):
      return image_files.decode(image, f"tfds:{self.name}[{index}]", size)
    return image_files.from_array(image)

  def images(self, indices: np.ndarray, size: int) -> np.ndarray:
    """Returns the images [n, size, size, 3] uint8 at `indices` [n]."""
    read = functools.partial(self._read, size=size)
    return image_files.squares(read, indices, size)

  def labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns the classes [n] int64 at `indices` [n], -1 where unknown."""
    if not self._labelled:
      return np.full(len(indices), -1, np.int64)
    labels = [self._source[int(i)]["label"] for i in indices]
    labels = np.array(labels, np.int64)
    if self._classes is None:
      return labels
    return np.where(labels < 0, -1, self._classes[labels])

  def encoded(self, index: int) -> bytes:
    """Returns the stored file if PNG, JPEG or WebP, else a PNG file."""
    image = self._source[index]["image"]
    if isinstance(image, bytes):
      return image_files.common(image, f"tfds:{self.name}[{index}]")
    return image_files.png(self._read(index))

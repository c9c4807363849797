"""A split of a TFDS dataset as a source of images."""

from collections.abc import Iterator, Sequence
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ecos_jax import errors
from ecos_jax.config import classes as classes_lib
from ecos_jax.data import images as image_files

_FEATURES = "tensorflow_datasets.core.features."
_IMAGE = "image_feature.Image"
# TFDS imports the module of any class that features.json names.
_ALLOWED = frozenset(
  _FEATURES + name
  for name in (
    "bounding_boxes.BBoxFeature",
    "class_label_feature.ClassLabel",
    "features_dict.FeaturesDict",
    "scalar.Scalar",
    "sequence_feature.Sequence",
    "tensor_feature.Tensor",
    "text_feature.Text",
    _IMAGE,
  )
)
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_MAX_JSON_BYTES = 2**24


def _class_names(value: Any) -> Iterator[str]:
  """Yields the feature classes that a features.json names, at any depth."""
  if isinstance(value, dict):
    for key, inner in value.items():
      if key in _CLASS_KEYS and isinstance(inner, str):
        yield inner
      yield from _class_names(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _class_names(inner)


def _checked_images(name: str, data_dir: str | None) -> set[str]:
  """Returns the names of the image features of a prepared dataset.

  Args:
    name: TFDS's name of the dataset.
    data_dir: Where TFDS keeps its data; None: TFDS's default.

  Raises:
    EcosError: Its features.json names a class that is not allowed, or holds
      images where they would be decoded by TFDS, which takes any format.
  """
  root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  folder = Path(root).expanduser() / name.partition(":")[0]
  images = {"image"}
  for path in folder.rglob("features.json"):
    try:
      if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"it exceeds {_MAX_JSON_BYTES} bytes")
      content = json.loads(path.read_bytes())
      classes = list(_class_names(content))
      unknown = [c for c in classes if c not in _ALLOWED]
      if unknown:
        raise ValueError(
          f"it names the class {unknown[0]!r}, which TFDS would import; only "
          "TFDS's own features of images, labels, text and numbers are allowed"
        )
      top = content.get("featuresDict", {}).get("features", {})
      found = {
        key
        for key, feature in top.items()
        if feature.get("pythonClassName") == _FEATURES + _IMAGE
      }
      if classes.count(_FEATURES + _IMAGE) > len(found):
        raise ValueError("images must be features of their own")
      images |= found
    except (ValueError, AttributeError, OSError, RecursionError) as error:
      raise errors.EcosError(f"cannot use {path}: {error}") from error
  return images


class TfdsSource:
  """A split of a TFDS dataset with the feature `image`, and perhaps `label`."""

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str | None = None,
    classes: Sequence[str] | None = None,
    ground: str = image_files.WHITE,
  ):
    """Opens the dataset; TFDS downloads it first if need be.

    Args:
      name: TFDS's name of the dataset: `mnist`, `domainnet/real:1.0.0`.
      split: Such as `train` or `train[:10%]`.
      data_dir: Where TFDS keeps its data; None: TFDS's default.
      classes: Names of classes of the dataset, in the order of their labels
        here; samples of other classes get label -1. None: the dataset's labels.
      ground: As in `images.rgb`.

    Raises:
      EcosError: TFDS cannot provide the dataset, or it has no images or lacks a
        class.
    """
    images = _checked_images(name, data_dir)
    # Imported here: it takes seconds, and most clients do not need it.
    import tensorflow_datasets as tfds

    self.name = f"{name}:{split}"
    self._ground = ground
    open_split: Any = functools.partial(
      tfds.data_source, name, split=split, data_dir=data_dir
    )
    # Images are decoded in this module, so that files can be copied too.
    try:
      skip = tfds.decode.SkipDecoding()
      source = open_split(decoders=dict.fromkeys(images, skip))
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
      classes = classes_lib.named(classes)
      names = [classes_lib.normal(name) for name in names]
      unknown = [name for name in classes if name not in names]
      if unknown:
        raise errors.EcosError(
          f"the TFDS dataset {name} has no class "
          f"{classes_lib.missing(unknown, names)}"
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
    return image_files.squares(read, indices, size, self._ground)

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
      where = f"tfds:{self.name}[{index}]"
      return image_files.common(image, where, self._ground)
    return image_files.png(self._read(index))

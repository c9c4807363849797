"""The public encoders, by the name that travels in a query.

The cloud encodes its pool and the client its own images, and distances between
the two mean something only if both used the same encoder. So an encoder has a
digest over everything that determines its output, and a query carries it.
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import json

import jax
import numpy as np

from ecos_jax import errors
from ecos_jax.encoders import hog


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A public map from images to features.

  Attributes:
    name: As in `names()`.
    image_size: Images are [b, image_size, image_size, 3] uint8.
    dimension: d, the length of a feature.
    settings: What determines the output besides the weights.
    digest: sha256 (hex) over name, settings and weights.
    apply: uint8 [b, image_size, image_size, 3] -> float32 [b, d]; can be
      jitted.
  """

  name: str
  image_size: int
  dimension: int
  settings: dict[str, int | float | str]
  digest: str
  apply: Callable


def _digest(name: str, settings: dict[str, int | float | str]) -> str:
  text = json.dumps([name, settings], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _hog() -> Encoder:
  settings: dict[str, int | float | str] = {
    "orientations": hog.ORIENTATIONS,
    "cell": hog.CELL,
    "block": hog.BLOCK,
    "norm": "L2",
  }
  return Encoder(
    name="hog",
    image_size=hog.IMAGE_SIZE,
    dimension=hog.DIMENSION,
    settings=settings,
    digest=_digest("hog", settings),
    apply=hog.hog,
  )


_ENCODERS = {"hog": _hog}


def names() -> tuple[str, ...]:
  """Returns the names of the encoders there are."""
  return tuple(_ENCODERS)


@functools.cache
def get(name: str) -> Encoder:
  """Returns the encoder called `name`, the same object at each call.

  Raises:
    EcosError: There is none of that name.
  """
  if name not in _ENCODERS:
    raise errors.EcosError(
      f"unknown encoder {name!r}: --config.encoder.name must be one of "
      f"{', '.join(names())}"
    )
  return _ENCODERS[name]()


def encode(
  encoder: Encoder, images: np.ndarray, batch_size: int = 1024
) -> np.ndarray:
  """Returns the features of images, [n, d] float32.

  All batches have one shape, the last one padded, so that the encoder is
  compiled once, whatever n is.

  Args:
    encoder: From `get`.
    images: [n, s, s, 3] uint8, s the encoder's image size; n may be 0.
    batch_size: Images a call of the encoder.

  Raises:
    ValueError: The images have another shape or type.
  """
  s = encoder.image_size
  if images.shape[1:] != (s, s, 3) or images.dtype != np.uint8:
    raise ValueError(
      f"encoder {encoder.name} wants uint8 [n, {s}, {s}, 3], got "
      f"{images.dtype} {list(images.shape)}"
    )
  apply = jax.jit(encoder.apply)
  features = np.empty((len(images), encoder.dimension), np.float32)
  for start in range(0, len(images), batch_size):
    batch = images[start : start + batch_size]
    padding = batch_size - len(batch)
    padded = np.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0)))
    encoded = np.asarray(apply(padded))
    features[start : start + len(batch)] = encoded[: len(batch)]
  return features

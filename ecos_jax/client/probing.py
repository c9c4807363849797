"""What encoding costs, and whether one image changes another's features.

Epsilon counts on one fact: a sample that comes or goes changes no other
sample's vote. An encoder that mixes the images of a batch, such as one with
batch statistics, breaks it without any error. So before anything private is
read, public random images are encoded twice, at other places and among other
images of a batch of the very shape that will be used; not one bit may change.
"""

from collections.abc import Callable
import functools
import resource
import sys
import time

import numpy as np

from ecos_jax import errors
from ecos_jax.encoders import registry

# Pixels to encode at once; 1,024 images of 64 x 64.
_PIXELS = 2**22


def batch_size(encoder: registry.Encoder, most: int) -> int:
  """Returns how many images to encode at once: fewer if they are large.

  Args:
    encoder: From `encoding.encoder_of`.
    most: The largest number.
  """
  fit = _PIXELS // max(encoder.image_size, 1) ** 2
  # A power of two, so that encoders can split the batch evenly.
  return min(most, 1 << max(fit.bit_length() - 1, 0))


def seconds(encoder: registry.Encoder, batch: int) -> float:
  """Returns the seconds to encode one image, after checking the encoder.

  Args:
    encoder: From `encoding.encoder_of`.
    batch: Number of images to encode at once.

  Raises:
    EcosError: The features of an image depend on other images, or on its place.
  """
  key = encoder.apply, encoder.image_size, encoder.dimension, batch
  return _seconds(encoder.name, *key)


@functools.lru_cache(maxsize=8)
def _seconds(
  name: str, apply: Callable, size: int, dimension: int, batch: int
) -> float:
  encoder = registry.Encoder(name, size, dimension, {}, "", apply)
  random = np.random.default_rng(0)
  shape = (batch, size, size, 3)
  images = random.integers(0, 256, shape, np.uint8)
  kept = random.permutation(batch)[: max(batch // 2, 1)]
  places = random.permutation(batch)[: len(kept)]
  # Middle tones among all tones, then among one grey: the largest and smallest
  # value of a batch, its mean and its spread are then others.
  images[kept] = 64 + images[kept] // 2
  others = np.full(shape, 100, np.uint8)
  others[places] = images[kept]
  first = registry.encode(encoder, images, batch)[kept]
  began = time.perf_counter()
  second = registry.encode(encoder, others, batch)[places]
  taken = (time.perf_counter() - began) / batch
  if not np.array_equal(first.view(np.uint32), second.view(np.uint32)):
    raise errors.EcosError(
      f"the encoder {name} gives an image other features among other images, "
      f"or at another place of a batch of {batch}: then one sample changes the "
      "votes of others, and epsilon does not hold; nothing was spent. If it "
      "uses statistics of the batch, as batch normalisation does in training, "
      "ask the cloud for one in evaluation mode; if it only rounds "
      "differently, set `batch_size` to 1"
    )
  return taken


def describe(encoder: registry.Encoder, most: int) -> str:
  """Returns what encoding will take, for the owner of the data.

  Args:
    encoder: From `encoding.encoder_of`.
    most: The largest number of images to encode at once.

  Raises:
    EcosError: As in `seconds`.
  """
  batch, s = batch_size(encoder, most), encoder.image_size
  each = seconds(encoder, batch)
  # In KiB, but on macOS in bytes.
  unit = 1 if sys.platform == "darwin" else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  return (
    f"encodes  images of {s} x {s} pixels with {encoder.name}, {batch} at "
    f"once: about {1000 * each:.3g} s for 1,000 of them, and {peak / 1e6:.0f} "
    "MB of memory"
  )

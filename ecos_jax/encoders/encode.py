"""Images to features in memory."""

import jax
import numpy as np

from ecos_jax import config
from ecos_jax.config import reading
from ecos_jax.data import features as feature_files
from ecos_jax.data import pools
from ecos_jax.encoders import registry


def encode(
  images: np.ndarray | jax.Array | pools.Source | pools.Pool,
  encoder: registry.Encoder | str = "hog_grey",
  *,
  batch_size: int = 256,
) -> np.ndarray:
  """Returns the features of images, float32 [n, d].

  The images are cut to squares and resized to the size that the encoder wants,
  a batch at a time.

  Args:
    images: uint8 [n, h, w, 3], or grey [n, h, w]; or a source or pool.
    encoder: An encoder or its name, one of `encoders.registry.names()`.
    batch_size: Images to read and encode at once.

  Raises:
    EcosError: The images have another type or shape, one cannot be read, there
      is no such encoder, or `batch_size` is refused.
  """
  if isinstance(encoder, str):
    encoder = registry.get(encoder)
  batch_size = reading.from_arguments(
    config.Encoder, batch_size=batch_size
  ).batch_size
  source = (
    pools.ArraySource("`images`", np.asarray(images))
    if isinstance(images, np.ndarray | jax.Array)
    else images
  )
  features = np.empty((len(source), encoder.dimension), np.float32)
  for start in range(0, len(source), batch_size):
    rows = np.arange(start, min(start + batch_size, len(source)))
    features[rows] = of_rows(source, rows, encoder, batch_size)
  return features


def of_rows(
  source: pools.Source | pools.Pool,
  indices: np.ndarray,
  encoder: registry.Encoder | None,
  batch_size: int,
) -> np.ndarray:
  """Returns the features of some samples, [n, d].

  Args:
    source: Images, or features already.
    indices: int [n].
    encoder: Encodes images; None for features.
    batch_size: Images to encode at once.

  Raises:
    EcosError: An image cannot be read.
  """
  if isinstance(source, feature_files.FeatureSource) or (
    isinstance(source, pools.Pool) and source.feature_sources
  ):
    return source.features(indices)
  assert encoder is not None
  images = source.images(indices, encoder.image_size)
  return registry.encode(encoder, images, batch_size)

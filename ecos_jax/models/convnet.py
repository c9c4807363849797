"""Convolutional networks for images of 28 x 28, made to train on CPUs.

The first convolution halves the image, so that a step is cheap; with batch
normalisation few steps are enough. (On a CPU, a convolution as a matrix product
over patches is faster, but the whole training step is not.)
"""

import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

# Channels and stride of each 3x3 convolution: 28 -> 14 -> 7 -> ... -> 4 pixels.
Layers = tuple[tuple[int, int], ...]
SMALL: Layers = ((8, 2), (16, 2), (32, 2))
MEDIUM: Layers = ((32, 2), (64, 2), (64, 1), (128, 2))
LARGE: Layers = ((64, 2), (128, 2), (128, 1), (256, 2), (256, 1))
_MOMENTUM = 0.95  # of the running statistics; runs are short


def _lecun_normal(
  key: jax.Array, shape: tuple[int, ...], dtype: Any, out_sharding: Any = None
) -> jax.Array:
  """Returns what flax draws by default, bit for bit.

  It is drawn as one row: XLA takes seconds to compile the draw of a small array
  with several axes.
  """
  del out_sharding
  # The standard deviation of a normal distribution that is cut off at 2.
  cut = jnp.asarray(0.87962566103423978, dtype)
  scale = jnp.sqrt(jnp.asarray(1 / math.prod(shape[:-1]), dtype)) / cut
  row = jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype)
  return (row * scale).reshape(shape)


class ConvNet(nnx.Module):
  """Convolutions, average pooling, one linear layer."""

  def __init__(self, num_classes: int, rngs: nnx.Rngs, layers: Layers = MEDIUM):
    """Makes the network.

    Args:
      num_classes: Number of logits.
      rngs: For the initial weights.
      layers: Channels and stride of each convolution: with ten classes `SMALL`
        has 6,000 weights, `MEDIUM` 132,000 and `LARGE` 1.1 million.
    """
    self.convolutions = nnx.List()
    self.norms = nnx.List()
    channels = 3
    for width, stride in layers:
      self.convolutions.append(
        nnx.Conv(
          channels,
          width,
          (3, 3),
          strides=stride,
          use_bias=False,
          kernel_init=_lecun_normal,
          rngs=rngs,
        )
      )
      self.norms.append(nnx.BatchNorm(width, momentum=_MOMENTUM, rngs=rngs))
      channels = width
    self.head = nnx.Linear(
      channels, num_classes, kernel_init=_lecun_normal, rngs=rngs
    )

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns the logits [b, num_classes] of images [b, s, s, 3] in [-1, 1]."""
    features = images
    for convolution, norm in zip(self.convolutions, self.norms, strict=True):
      features = jax.nn.relu(norm(convolution(features)))
    return self.head(features.mean((1, 2)))

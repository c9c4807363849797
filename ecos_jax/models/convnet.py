"""A small convolutional network for images of 28 x 28, made to train on CPUs.

The first convolution halves the image, batch normalisation lets few steps be
enough, and on a CPU a convolution is one matrix product over patches: XLA's own
convolution takes two to three times as long there, forward and backward.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

# Channels and stride of each 3x3 convolution: 28 -> 14 -> 7 -> 7 -> 4 pixels.
_LAYERS = ((32, 2), (64, 2), (64, 1), (128, 2))
_MOMENTUM = 0.95  # of the running statistics; runs are short


def patch_convolution(
  images: jax.Array,
  kernel: jax.Array,
  window_strides: Sequence[int],
  padding: Any,
  **settings: Any,
) -> jax.Array:
  """Returns `lax.conv_general_dilated` of NHWC images as one matrix product.

  Only what `ConvNet` asks for: padding "SAME", no dilation, no groups.

  Args:
    images: [b, h, w, c].
    kernel: [k, k, c, d].
    window_strides: Down and across.
    padding: Taken as "SAME".
    **settings: The rest of what flax passes on; the defaults.
  """
  del padding, settings
  pads, ends = [(0, 0)], []
  for size, width, stride in zip(
    images.shape[1:3], kernel.shape[:2], window_strides, strict=True
  ):
    ends.append((size - 1) // stride * stride + 1)
    pad = max(ends[-1] + width - 1 - size, 0)
    pads.append((pad // 2, pad - pad // 2))
  padded = jnp.pad(images, [*pads, (0, 0)])
  down, across = window_strides
  patches = [
    padded[:, y : y + ends[0] : down, x : x + ends[1] : across]
    for y in range(kernel.shape[0])
    for x in range(kernel.shape[1])
  ]
  return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])


class ConvNet(nnx.Module):
  """Four convolutions, average pooling, one linear layer; 140,000 weights."""

  def __init__(self, num_classes: int, rngs: nnx.Rngs):
    """Makes the network.

    Args:
      num_classes: Number of logits.
      rngs: For the initial weights.
    """
    convolution = jax.lax.conv_general_dilated
    if jax.default_backend() == "cpu":
      convolution = patch_convolution
    self.convolutions = nnx.List()
    self.norms = nnx.List()
    channels = 3
    for width, stride in _LAYERS:
      self.convolutions.append(
        nnx.Conv(
          channels,
          width,
          (3, 3),
          strides=stride,
          use_bias=False,
          conv_general_dilated=convolution,
          rngs=rngs,
        )
      )
      self.norms.append(nnx.BatchNorm(width, momentum=_MOMENTUM, rngs=rngs))
      channels = width
    self.head = nnx.Linear(channels, num_classes, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns the logits [b, num_classes] of images [b, s, s, 3] in [-1, 1]."""
    features = images
    for convolution, norm in zip(self.convolutions, self.norms, strict=True):
      features = jax.nn.relu(norm(convolution(features)))
    return self.head(features.mean((1, 2)))

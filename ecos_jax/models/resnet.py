"""ResNet-18 and ResNet-50, as torchvision and timm publish their weights.

He et al., 2016, with the stride of a bottleneck in its 3x3 convolution
(version 1.5). The parts are named as in the published files.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

# Mean and standard deviation of ImageNet's pixels, 0 to 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

_EPSILON = 1e-5
_MOMENTUM = 0.9


def _convolution(
  channels: int, out: int, kernel: int, stride: int, **options: Any
) -> nnx.Conv:
  """Returns a convolution with equal padding on both sides, as in torch."""
  pad = kernel // 2
  return nnx.Conv(
    channels,
    out,
    (kernel, kernel),
    strides=stride,
    padding=((pad, pad), (pad, pad)),
    use_bias=False,
    **options,
  )


def _norm(channels: int, **options: Any) -> nnx.BatchNorm:
  return nnx.BatchNorm(
    channels, momentum=_MOMENTUM, epsilon=_EPSILON, **options
  )


class _Block(nnx.Module):
  """A residual block of two 3x3 convolutions, or of a bottleneck."""

  def __init__(
    self,
    channels: int,
    width: int,
    stride: int,
    bottleneck: bool,
    **options: Any,
  ):
    out = 4 * width if bottleneck else width
    # Kernel, output channels and stride of each convolution.
    layers = [(3, width, stride), (3, width, 1)]
    if bottleneck:
      layers = [(1, width, 1), (3, width, stride), (1, out, 1)]
    self.depth = len(layers)
    before = channels
    for i, (kernel, after, step) in enumerate(layers, 1):
      convolution = _convolution(before, after, kernel, step, **options)
      setattr(self, f"conv{i}", convolution)
      setattr(self, f"bn{i}", _norm(after, **options))
      before = after
    self.reduces = stride > 1 or channels != out
    if self.reduces:
      self.downsample = nnx.List(
        [
          _convolution(channels, out, 1, stride, **options),
          _norm(out, **options),
        ]
      )

  def __call__(self, x: jax.Array) -> jax.Array:
    y = x
    for i in range(1, self.depth + 1):
      y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
      if i < self.depth:
        y = jax.nn.relu(y)
    if self.reduces:
      convolution, norm = self.downsample
      x = norm(convolution(x))
    return jax.nn.relu(x + y)


class ResNet(nnx.Module):
  """Stem, four stages, average pooling, one linear layer.

  Attributes:
    dimension: d, the number of features.
  """

  def __init__(
    self,
    num_classes: int,
    rngs: nnx.Rngs,
    *,
    repeats: tuple[int, ...],
    bottleneck: bool,
    dtype: Any = jnp.float32,
  ):
    """Makes the network with random weights.

    Args:
      num_classes: Number of logits.
      rngs: For the initial weights.
      repeats: Blocks of each stage.
      bottleneck: Whether blocks are bottlenecks (1x1, 3x3, 1x1) or 3x3, 3x3.
      dtype: The type to compute in.
    """
    options = {"rngs": rngs, "dtype": dtype}
    self.conv1 = _convolution(3, 64, 7, 2, **options)
    self.bn1 = _norm(64, **options)
    channels = 64
    for stage, count in enumerate(repeats):
      width = 64 << stage
      blocks = nnx.List()
      for i in range(count):
        stride = 2 if stage and i == 0 else 1
        blocks.append(_Block(channels, width, stride, bottleneck, **options))
        channels = 4 * width if bottleneck else width
      setattr(self, f"layer{stage + 1}", blocks)
    self.stages = len(repeats)
    self.dimension = channels
    self.fc = nnx.Linear(channels, num_classes, rngs=rngs)

  def features(self, images: jax.Array) -> jax.Array:
    """Returns the features [b, d] of images [b, s, s, 3] in [-1, 1]."""
    x = ((images + 1.0) * 127.5 - jnp.asarray(MEAN)) / jnp.asarray(STD)
    x = jax.nn.relu(self.bn1(self.conv1(x)))
    x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for stage in range(1, self.stages + 1):
      for block in getattr(self, f"layer{stage}"):
        x = block(x)
    return x.mean((1, 2), dtype=jnp.float32)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns the logits [b, num_classes] of images [b, s, s, 3] in [-1, 1]."""
    return self.fc(self.features(images))


resnet18 = functools.partial(ResNet, repeats=(2, 2, 2, 2), bottleneck=False)
resnet50 = functools.partial(ResNet, repeats=(3, 4, 6, 3), bottleneck=True)

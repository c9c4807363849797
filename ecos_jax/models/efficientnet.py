"""EfficientNet-Lite0: a small pretrained network that is fast everywhere.

EfficientNet (Tan and Le, 2019) without squeeze-and-excitation and with ReLU6 in
place of swish: 4.7 million weights, 390 million multiply-adds at 224 pixels.
Padding is TensorFlow's SAME, as in the published weights.

XLA's convolutions of few channels are slow on CPUs. There the stem is a matrix
product over patches, and a depthwise convolution is a sum of k*k shifted
products. GPUs and TPUs get XLA's convolutions.
"""

from collections.abc import Iterable, Iterator
import functools
import itertools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

DIMENSION = 1280
# Mean and standard deviation of pixels, 0 to 255, for the published weights.
MEAN = (127.0, 127.0, 127.0)
STD = (128.0, 128.0, 128.0)

_STEM = 32
# Expansion, channels, repeats, stride of the first, kernel.
_STAGES = (
  (1, 16, 1, 1, 3),
  (6, 24, 2, 2, 3),
  (6, 40, 2, 2, 5),
  (6, 80, 3, 2, 3),
  (6, 112, 3, 1, 5),
  (6, 192, 4, 2, 5),
  (6, 320, 1, 1, 3),
)
# Style is read after the stem and after each of this many stages.
_STYLE_STAGES = 3
# Style varies less than content, so it gets a larger weight.
_STYLE_WEIGHT = 2.0
_STATISTICS = (jnp.mean, jnp.std)
# Images of so few rows are convolved row by row.
_FEW_ROWS = 4
_EPSILON = 1e-3
_MOMENTUM = 0.9


def _norm(channels: int, **options: Any) -> nnx.BatchNorm:
  return nnx.BatchNorm(
    channels, momentum=_MOMENTUM, epsilon=_EPSILON, **options
  )


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
  """Returns TensorFlow's SAME padding of one axis, before and after."""
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.add, terms)


def _shifted(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Returns the depthwise convolution as a sum of shifted products."""
  k = kernel.shape[0]
  height, width = images.shape[1:3]
  (above, below), sides = _same(height, k, stride), _same(width, k, stride)
  rows, columns = -(-height // stride), -(-width // stride)
  if height > _FEW_ROWS:
    images = jnp.pad(images, ((0, 0), (above, below), sides, (0, 0)))
    # Otherwise XLA fuses it with the sum, and tests for the border each time.
    images = jax.lax.optimization_barrier(images)
    return _sum(
      images[:, _steps(i, rows, stride), _steps(j, columns, stride)]
      * kernel[i, j, 0]
      for i in range(k)
      for j in range(k)
    )
  # Row by row, without the rows of the kernel that lie on the padding.
  images = jnp.pad(images, ((0, 0), (0, 0), sides, (0, 0)))
  return jnp.stack(
    [
      _sum(
        images[:, row + i, _steps(j, columns, stride)] * kernel[i, j, 0]
        for i in range(k)
        if 0 <= row + i < height
        for j in range(k)
      )
      for row in range(-above, -above + rows * stride, stride)
    ],
    axis=1,
  )


def _patches(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Returns the convolution as one matrix product over patches."""
  k = kernel.shape[0]
  height, width = images.shape[1:3]
  pads = _same(height, k, stride), _same(width, k, stride)
  images = jnp.pad(images, ((0, 0), *pads, (0, 0)))
  rows, columns = -(-height // stride), -(-width // stride)
  patches = [
    images[:, _steps(i, rows, stride), _steps(j, columns, stride)]
    for i in range(k)
    for j in range(k)
  ]
  patches = jax.lax.optimization_barrier(jnp.concatenate(patches, axis=-1))
  return patches @ kernel.reshape(-1, kernel.shape[-1])


def _steps(first: int, count: int, stride: int) -> slice:
  return slice(first, first + (count - 1) * stride + 1, stride)


def _convolved(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  return jax.lax.conv_general_dilated(
    images,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=images.shape[-1] // kernel.shape[2],
  )


def _unit(rows: jax.Array) -> jax.Array:
  """Returns rows [b, c] of norm 1, or of 0."""
  norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
  return rows / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)


class _Convolution(nnx.Module):
  """A convolution with SAME padding, ordinary or depthwise."""

  def __init__(
    self,
    shape: tuple[int, int, int, int],
    stride: int,
    rngs: nnx.Rngs,
    dtype: Any,
  ):
    """Makes the kernel, [k, k, channels (1 if depthwise), out]."""
    init = nnx.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
    self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
    self.stride = stride
    self.dtype = dtype

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns [b, ceil(h / stride), ceil(w / stride), out]."""
    depthwise = self.kernel.shape[2] == 1
    on_cpu = _shifted if depthwise else _patches
    return jax.lax.platform_dependent(
      images.astype(self.dtype),
      self.kernel[...].astype(self.dtype),
      cpu=functools.partial(on_cpu, stride=self.stride),
      default=functools.partial(_convolved, stride=self.stride),
    )


class _Block(nnx.Module):
  """Inverted bottleneck (expand, depthwise, project), with a skip around it."""

  def __init__(
    self,
    width: int,
    out: int,
    expand: int,
    stride: int,
    kernel: int,
    **options: Any,
  ):
    hidden = width * expand
    # A 1x1 convolution is a matrix product over the channels.
    self.expands = expand > 1
    if self.expands:
      self.expand = nnx.Linear(width, hidden, use_bias=False, **options)
      self.expand_norm = _norm(hidden, **options)
    shape = kernel, kernel, 1, hidden
    self.depthwise = _Convolution(shape, stride, **options)
    self.depthwise_norm = _norm(hidden, **options)
    self.project = nnx.Linear(hidden, out, use_bias=False, **options)
    self.project_norm = _norm(out, **options)
    self.skip = stride == 1 and width == out

  def __call__(self, x: jax.Array) -> jax.Array:
    y = x
    if self.expands:
      y = jax.nn.relu6(self.expand_norm(self.expand(y)))
    y = jax.nn.relu6(self.depthwise_norm(self.depthwise(y)))
    y = self.project_norm(self.project(y))
    return x + y if self.skip else y


class _Shift(nnx.Module):
  """A folded batch norm: its scale is in the kernel before it."""

  def __init__(self, bias: Any, dtype: Any):
    self.bias = nnx.Param(bias)
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    return x + self.bias[...].astype(self.dtype)


class EfficientNetLite0(nnx.Module):
  """Stem, 16 inverted bottlenecks, head, average pooling, one linear layer."""

  def __init__(
    self,
    num_classes: int,
    rngs: nnx.Rngs,
    *,
    dtype: Any = jnp.float32,
    style: bool = False,
  ):
    """Makes the network with random weights.

    Args:
      num_classes: Number of logits.
      rngs: For the initial weights.
      dtype: The type to compute in.
      style: Whether `features` has the style as well.
    """
    options = {"rngs": rngs, "dtype": dtype}
    self.style = style
    self.stem = _Convolution((3, 3, 3, _STEM), 2, **options)
    self.stem_norm = _norm(_STEM, **options)
    self.blocks = nnx.List()
    width = _STEM
    for expand, out, repeats, stride, kernel in _STAGES:
      for i in range(repeats):
        first = stride if i == 0 else 1
        self.blocks.append(_Block(width, out, expand, first, kernel, **options))
        width = out
    self.top = nnx.Linear(width, DIMENSION, use_bias=False, **options)
    self.top_norm = _norm(DIMENSION, **options)
    self.head = nnx.Linear(DIMENSION, num_classes, rngs=rngs)

  def fold(self) -> None:
    """Multiplies the batch norms into the kernels before them, for inference.

    The weights must be arrays of numpy. Features change by rounding.
    """
    for module in (self, *self.blocks):
      for name in [n for n in vars(module) if f"{n}_norm" in vars(module)]:
        layer, norm = getattr(module, name), getattr(module, f"{name}_norm")
        scale = norm.scale[...] / np.sqrt(norm.var[...] + _EPSILON)
        layer.kernel = nnx.Param(layer.kernel[...] * scale)
        bias = norm.bias[...] - norm.mean[...] * scale
        setattr(module, f"{name}_norm", _Shift(bias, layer.dtype))

  def _activations(self, images: jax.Array) -> Iterator[jax.Array]:
    """Yields [b, h, w, c] after the stem, after each stage, after the top."""
    x = ((images + 1.0) * 127.5 - jnp.asarray(MEAN)) / jnp.asarray(STD)
    x = jax.nn.relu6(self.stem_norm(self.stem(x)))
    yield x
    ends = set(itertools.accumulate(stage[2] for stage in _STAGES))
    for i, block in enumerate(self.blocks, 1):
      x = block(x)
      if i in ends:
        yield x
    yield jax.nn.relu6(self.top_norm(self.top(x)))

  def features(self, images: jax.Array) -> jax.Array:
    """Returns the features of images [b, s, s, 3] in [-1, 1], [b, 1280].

    With `style` they are [b, 1504]. The first 1280 are divided by their norm.
    For the stem and each of the first three stages follow the means and the
    standard deviations of its channels, together of norm 2. Such statistics
    tell styles of drawing apart (Gatys, Ecker, Bethge 2016; Huang and Belongie
    2017).
    """
    *early, top = self._activations(images)
    content = top.mean((1, 2), dtype=jnp.float32)
    if not self.style:
      return content
    blocks = [
      jnp.concatenate(
        [f(x.astype(jnp.float32), (1, 2)) for f in _STATISTICS], 1
      )
      for x in early[: 1 + _STYLE_STAGES]
    ]
    return jnp.concatenate(
      [_unit(content), *(_STYLE_WEIGHT * _unit(block) for block in blocks)], 1
    )

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns the logits [b, num_classes] of images [b, s, s, 3] in [-1, 1]."""
    return self.head(self.features(images))

"""Vision transformers of size S, as DINO and DINOv2 publish their weights.

Dosovitskiy et al., 2021; with LayerScale (Touvron et al., 2021) as in DINOv2.
Layers have the names of the published files. The feature of an image is its
class token after the last norm.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

DIMENSION = 384
# Mean and standard deviation of ImageNet's pixels, 0 to 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

_BLOCKS = 12
_HEADS = 6
_EPSILON = 1e-6


def _norm(**options: Any) -> nnx.LayerNorm:
  return nnx.LayerNorm(DIMENSION, epsilon=_EPSILON, **options)


class _Attention(nnx.Module):
  """Self-attention, with queries, keys and values from one matrix."""

  def __init__(self, **options: Any):
    self.qkv = nnx.Linear(DIMENSION, 3 * DIMENSION, **options)
    self.proj = nnx.Linear(DIMENSION, DIMENSION, **options)

  def __call__(self, x: jax.Array) -> jax.Array:
    b, n, d = x.shape
    qkv = self.qkv(x).reshape(b, n, 3, _HEADS, d // _HEADS)
    query, key, value = jnp.moveaxis(qkv, 2, 0)
    attended = jax.nn.dot_product_attention(query, key, value)
    return self.proj(attended.reshape(b, n, d))


class _Mlp(nnx.Module):
  """Two linear layers, with four times as many numbers between them."""

  def __init__(self, **options: Any):
    self.fc1 = nnx.Linear(DIMENSION, 4 * DIMENSION, **options)
    self.fc2 = nnx.Linear(4 * DIMENSION, DIMENSION, **options)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class _Scale(nnx.Module):
  """LayerScale: a learned factor for each channel."""

  def __init__(self, dtype: Any):
    self.gamma = nnx.Param(jnp.ones((DIMENSION,)))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    return x * self.gamma[...].astype(self.dtype)


class _Block(nnx.Module):
  """Attention, then two linear layers; before each a norm, around it a skip."""

  def __init__(self, layer_scale: bool, **options: Any):
    self.norm1, self.norm2 = _norm(**options), _norm(**options)
    self.attn = _Attention(**options)
    self.mlp = _Mlp(**options)
    self.scaled = layer_scale
    if layer_scale:
      self.ls1, self.ls2 = (_Scale(options["dtype"]) for _ in range(2))

  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.attn(self.norm1(x))
    x = x + (self.ls1(y) if self.scaled else y)
    y = self.mlp(self.norm2(x))
    return x + (self.ls2(y) if self.scaled else y)


class _Patches(nnx.Module):
  """The image cut into patches, each mapped to a token."""

  def __init__(self, patch: int, **options: Any):
    self.proj = nnx.Conv(
      3, DIMENSION, (patch, patch), strides=patch, padding="VALID", **options
    )

  def __call__(self, images: jax.Array) -> jax.Array:
    return self.proj(images).reshape(len(images), -1, DIMENSION)


class VisionTransformer(nnx.Module):
  """Patches, a class token, positions, 12 blocks, a norm."""

  def __init__(
    self,
    rngs: nnx.Rngs,
    *,
    patch: int = 16,
    grid: int = 14,
    layer_scale: bool = False,
    dtype: Any = jnp.float32,
  ):
    """Makes the network with random weights.

    Args:
      rngs: For the initial weights.
      patch: Height and width of a patch.
      grid: The weights have [grid, grid] positions.
      layer_scale: Whether there is LayerScale.
      dtype: The type to compute in.
    """
    options = {"rngs": rngs, "dtype": dtype}
    init = nnx.initializers.truncated_normal(0.02)
    self.cls_token = nnx.Param(init(rngs.params(), (1, 1, DIMENSION)))
    self.pos_embed = nnx.Param(init(rngs.params(), (1, 1 + grid**2, DIMENSION)))
    self.patch_embed = _Patches(patch, **options)
    self.blocks = nnx.List(
      [_Block(layer_scale, **options) for _ in range(_BLOCKS)]
    )
    self.norm = _norm(**options)
    self.grid = grid
    self.dtype = dtype

  def features(self, images: jax.Array) -> jax.Array:
    """Returns the features [b, 384] of images [b, s, s, 3] in [-1, 1].

    For another image size than the weights', the positions are resized with a
    bicubic filter. Pixels that fill no patch are left out.
    """
    x = ((images + 1.0) * 127.5 - jnp.asarray(MEAN)) / jnp.asarray(STD)
    x = self.patch_embed(x)
    token = jnp.broadcast_to(self.cls_token[...], (len(x), 1, DIMENSION))
    x = jnp.concatenate([token.astype(self.dtype), x], 1)
    side = round((x.shape[1] - 1) ** 0.5)
    positions = self.pos_embed[...]
    if side != self.grid:
      square = positions[:, 1:].reshape(1, self.grid, self.grid, DIMENSION)
      square = jax.image.resize(square, (1, side, side, DIMENSION), "cubic")
      positions = jnp.concatenate(
        [positions[:, :1], square.reshape(1, -1, DIMENSION)], 1
      )
    x = x + positions.astype(self.dtype)
    for block in self.blocks:
      x = block(x)
    return self.norm(x)[:, 0].astype(jnp.float32)

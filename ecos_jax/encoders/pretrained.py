"""Encoders that are networks with published weights.

They compute in float32 at the highest precision, on every platform, unless
bfloat16 is asked for. Cloud and client must agree on the nearest centroid, and
bfloat16 keeps two to three digits: chips that sum in different orders would
differ in the last digit. So the type does not depend on the chip. It is a
setting and part of the digest, and the client computes in it too.
"""

from collections.abc import Callable
import functools
import math
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from ecos_jax import errors
from ecos_jax.encoders import encoder
from ecos_jax.models import efficientnet
from ecos_jax.models import resnet
from ecos_jax.models import vit
from ecos_jax.models import weights as weights_lib

# Pixels that a CPU encodes at once: their activations stay in its cache.
_CPU_PIXELS = 1 << 17


class _Network(NamedTuple):
  """A network, its module, and its image sizes in pixels."""

  make: Callable[..., nnx.Module]
  module: ModuleType
  image_size: int
  least_size: int


_NETWORKS = {
  "efficientnet_lite0": _Network(
    functools.partial(efficientnet.EfficientNetLite0, 1), efficientnet, 224, 16
  ),
  "efficientnet_lite0_style": _Network(
    functools.partial(efficientnet.EfficientNetLite0, 1, style=True),
    efficientnet,
    224,
    16,
  ),
  "resnet18": _Network(functools.partial(resnet.resnet18, 1), resnet, 224, 16),
  "resnet50": _Network(functools.partial(resnet.resnet50, 1), resnet, 224, 16),
  "vit_s16": _Network(
    functools.partial(vit.VisionTransformer, patch=16), vit, 224, 16
  ),
  "vit_s14": _Network(
    functools.partial(vit.VisionTransformer, patch=14), vit, 224, 14
  ),
}


def _features(
  graph: nnx.GraphDef, size: int, state: nnx.State, images: jax.Array
) -> jax.Array:
  """Returns the features of uint8 images of `size` pixels, float32 [b, d]."""
  merged: Any = nnx.merge(graph, state)

  def forward(images: jax.Array) -> jax.Array:
    return merged.features(images.astype(jnp.float32) / 127.5 - 1.0)

  with jax.default_matmul_precision("highest"):
    if jax.default_backend() != "cpu":
      return forward(images)
    # A power of two divides most batches.
    chunk = 1 << max((_CPU_PIXELS // size**2).bit_length() - 1, 0)
    rows = math.gcd(len(images), chunk)
    chunks = images.reshape(-1, rows, *images.shape[1:])
    return jax.lax.map(forward, chunks).reshape(len(images), -1)


def apply(model: nnx.Module, size: int) -> tuple[jax.tree_util.Partial, int]:
  """Returns the map of an encoder that is a network, and its dimension.

  Args:
    model: Has `features`; in evaluation mode.
    size: Height and width of the images.
  """
  graph, state = nnx.split(model)
  features = functools.partial(_features, graph, size)
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
  dimension = jax.eval_shape(features, state, images).shape[1]
  return jax.tree_util.Partial(features, state), dimension


def build(
  name: str,
  *,
  image_size: int | None,
  weights: str | None,
  dtype: str,
  called: encoder.ArgumentNames,
) -> encoder.Encoder:
  """Returns an encoder.

  Args:
    name: One of `weights.PUBLISHED`.
    image_size: Height and width of the images; None for the network's own.
    weights: As in `weights.find`; None for the published weights.
    dtype: The type to compute in, 'float32' or 'bfloat16'.
    called: The names of these arguments in errors.

  Raises:
    EcosError: There are no such weights, or they do not fit the network.
  """
  network, published = _NETWORKS[name], weights_lib.PUBLISHED[name]
  size = image_size or network.image_size
  if size < network.least_size:
    raise errors.EcosError(
      f"{called.image_size}={size}: {name} needs {network.least_size} or more"
    )
  source = weights or published.source
  path = weights_lib.find(source, called.weights)
  tensors = weights_lib.read(path, called.weights)
  options: dict[str, int | bool] = {}
  if network.module is vit:
    options["layer_scale"] = "blocks.0.ls1.gamma" in tensors
    if "pos_embed" in tensors:
      options["grid"] = math.isqrt(tensors["pos_embed"].shape[1] - 1)
  model = nnx.eval_shape(
    lambda: network.make(rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype), **options)
  )
  if hasattr(model, published.head):
    delattr(model, published.head)
  digest = weights_lib.assign(
    model, tensors, published, f"{called.weights}: {path}"
  )
  model.eval()
  if isinstance(model, efficientnet.EfficientNetLite0):
    model.fold()
  features, dimension = apply(model, size)
  settings: encoder.Settings = {
    "image_size": size,
    "dtype": dtype,
    "mean": " ".join(map(str, network.module.MEAN)),
    "std": " ".join(map(str, network.module.STD)),
    "weights": digest,
  }
  # Queries carry this; a path would reveal folders of the machine.
  label = source if ":" in source else Path(source).name
  return encoder.Encoder(
    name=name,
    image_size=size,
    dimension=dimension,
    settings=settings,
    digest=encoder.digest(name, settings),
    apply=features,
    source=label.encode("ascii", "replace").decode()[:128],
    licence=published.licence if weights is None else "",
  )

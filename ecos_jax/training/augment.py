"""Random views of a batch of images, made on the device inside the step.

A weak view is a shifted and slightly rotated image; a strong view is
RandAugment (Cubuk et al., 2020): three random operations of magnitude 5 out of
10 on top of the shift. There are no branches: every image goes through every
operation, and those that were not chosen for it leave it as it is. The
geometric operations are one affine map, sampled bilinearly once.

Images are uint8 [b, s, s, 3]; views are float32 [b, s, s, 3] as the models take
them, see `normalise`.
"""

import jax
import jax.numpy as jnp
from jax.scipy import ndimage

_SHIFT = 2  # pixels of padding of the random crop
_ROTATION = 15.0  # degrees
_CHOSEN = 3  # operations on a strong view
_LEVEL = 0.5  # magnitude 5 of 10
# Each operation at magnitude 10, as in RandAugment.
_ROTATE = 30.0  # degrees
_SHEAR = 0.3
_TRANSLATE = 0.3  # of the image's side
_ENHANCE = 0.9  # change of the factor of brightness, contrast, ...
_POSTERIZE = 4  # bits taken away
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma

OPERATIONS = (
  "identity",
  "autocontrast",
  "invert",
  "posterize",
  "brightness",
  "contrast",
  "colour",
  "sharpness",
  "rotate",
  "shear_x",
  "shear_y",
  "translate_x",
  "translate_y",
)


def normalise(images: jax.Array) -> jax.Array:
  """Returns uint8 images as float32 in [-1, 1], as the models take them."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def weak(images: jax.Array, key: jax.Array) -> jax.Array:
  """Returns a view of each image, moved by 2 pixels and 15 degrees at most."""
  shift_key, turn_key = jax.random.split(key)
  angle = jax.random.uniform(
    turn_key, images.shape[:1], minval=-_ROTATION, maxval=_ROTATION
  )
  zero = jnp.zeros_like(angle)
  views = affine(
    images.astype(jnp.float32) / 255.0,
    jnp.deg2rad(angle),
    jnp.stack([zero, zero], -1),
    _shifts(images, shift_key),
  )
  return 2.0 * views - 1.0


def strong(images: jax.Array, key: jax.Array) -> jax.Array:
  """Returns one strong view of each image: RandAugment with n=3, m=5.

  The three operations are distinct and applied in a fixed order, geometry
  first, where RandAugment draws with replacement and in any order.
  """
  shift_key, choice_key, sign_key = jax.random.split(key, 3)
  shape = (images.shape[0], len(OPERATIONS))
  lots = jax.random.uniform(choice_key, shape)
  chosen = lots <= jnp.sort(lots, axis=-1)[:, _CHOSEN - 1 : _CHOSEN]
  sign = jax.random.rademacher(sign_key, shape, dtype=jnp.float32)
  level = dict(
    zip(OPERATIONS, jnp.moveaxis(_LEVEL * sign * chosen, 1, 0), strict=True)
  )
  shift = _shifts(images, shift_key) + (
    _TRANSLATE
    * images.shape[1]
    * jnp.stack([level["translate_x"], level["translate_y"]], -1)
  )
  views = affine(
    images.astype(jnp.float32) / 255.0,
    jnp.deg2rad(_ROTATE * level["rotate"]),
    _SHEAR * jnp.stack([level["shear_x"], level["shear_y"]], -1),
    shift,
  )
  return 2.0 * colours(views, level) - 1.0


def _shifts(images: jax.Array, key: jax.Array) -> jax.Array:
  """Returns whole-pixel shifts [b, 2]: a random crop after padding."""
  return jax.random.randint(
    key, (images.shape[0], 2), -_SHIFT, _SHIFT + 1
  ).astype(jnp.float32)


def colours(images: jax.Array, level: dict[str, jax.Array]) -> jax.Array:
  """Returns the images after the operations on colour.

  Args:
    images: [b, s, s, 3] float32 between 0 and 1.
    level: For each operation, [b] in [-1, 1]; 0 is the identity. Only the
      enhancements use the sign.
  """
  level = {name: value[:, None, None, None] for name, value in level.items()}

  def blend(images, other, name):
    factor = 1.0 + _ENHANCE * level[name]
    return jnp.clip(other + factor * (images - other), 0.0, 1.0)

  low = images.min((1, 2), keepdims=True)
  span = images.max((1, 2), keepdims=True) - low
  stretched = (images - low) / jnp.where(span > 0, span, 1.0)
  images = jnp.where(
    (level["autocontrast"] != 0) & (span > 0), stretched, images
  )
  images = jnp.where(level["invert"] != 0, 1.0 - images, images)
  step = 2.0 ** jnp.round(_POSTERIZE * jnp.abs(level["posterize"])) / 255.0
  images = jnp.where(
    level["posterize"] != 0, jnp.floor(images / step) * step, images
  )
  images = blend(images, 0.0, "brightness")
  mean = images.mean((1, 2), keepdims=True) @ jnp.asarray(_GREY)[:, None]
  images = blend(images, mean, "contrast")
  grey = images @ jnp.asarray(_GREY)[:, None]
  images = blend(images, grey, "colour")
  return blend(images, _smooth(images), "sharpness")


def _smooth(images: jax.Array) -> jax.Array:
  """Returns the images after Pillow's SMOOTH filter: 3x3, centre 5, of 13."""
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
  rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
  box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
  return (box + 4.0 * images) / 13.0


def affine(
  images: jax.Array, angle: jax.Array, shear: jax.Array, shift: jax.Array
) -> jax.Array:
  """Returns the images turned, sheared and shifted, by one bilinear sampling.

  A pixel p of the view (from the centre) shows the image at
  R(angle) (I + shear) p + shift; outside, the nearest pixel of the border.

  Args:
    images: [b, s, s, c] float32.
    angle: [b] radians.
    shear: [b, 2] along x, along y.
    shift: [b, 2] pixels, x then y.
  """
  height, width = images.shape[1:3]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  shear_x, shear_y = shear[:, 0], shear[:, 1]
  matrix = jnp.stack(
    [
      jnp.stack([cos - sin * shear_y, cos * shear_x - sin], -1),
      jnp.stack([sin + cos * shear_y, sin * shear_x + cos], -1),
    ],
    -2,
  )  # [b, 2, 2], rows x and y
  y, x = jnp.mgrid[:height, :width].astype(jnp.float32)
  centre = jnp.asarray([(width - 1) / 2, (height - 1) / 2])
  grid = jnp.stack([x, y]) - centre[:, None, None]
  at = jnp.einsum("bij,jhw->bihw", matrix, grid)
  at += (centre + shift)[:, :, None, None]

  def sample(channel, at):
    return ndimage.map_coordinates(channel, [at[1], at[0]], 1, mode="nearest")

  channels = jax.vmap(sample, in_axes=(-1, None), out_axes=-1)
  return jax.vmap(channels)(images, at)

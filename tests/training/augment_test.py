import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps
import pytest
from scipy import ndimage

from ecos_jax.training import augment

_RNG = np.random.default_rng(0)
_AFFINE = jax.jit(augment.affine)
_COLOURS = jax.jit(augment.colours)
_VIEWS = {"weak": jax.jit(augment.weak), "strong": jax.jit(augment.strong)}


def _photos(count=4, size=28):
  """Returns smooth random uint8 images, so that rounding stays small."""
  noise = _RNG.normal(size=(count, size, size, 3))
  smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
  low, high = smooth.min(), smooth.max()
  return (40 + 180 * (smooth - low) / (high - low)).astype(np.uint8)


def _levels(count, **values):
  return {
    name: jnp.full(count, values.get(name, 0.0)) for name in augment.OPERATIONS
  }


def test_affine_samples_as_scipy_does():
  images = _RNG.random((5, 9, 9, 3)).astype(np.float32)
  angle = _RNG.uniform(-0.5, 0.5, 5)
  shear = _RNG.uniform(-0.3, 0.3, (5, 2))
  shift = _RNG.uniform(-3, 3, (5, 2))
  views = _AFFINE(*map(jnp.float32, (images, angle, shear, shift)))
  for i in range(5):
    cos, sin = np.cos(angle[i]), np.sin(angle[i])
    matrix = np.array([[cos, -sin], [sin, cos]]) @ [
      [1, shear[i, 0]],
      [shear[i, 1], 1],
    ]
    matrix = matrix[::-1, ::-1]  # scipy counts rows first
    offset = 4 + shift[i, ::-1] - matrix @ [4, 4]
    for channel in range(3):
      expected = ndimage.affine_transform(
        images[i, ..., channel], matrix, offset, order=1, mode="nearest"
      )
      np.testing.assert_allclose(views[i, ..., channel], expected, atol=1e-4)


def test_affine_by_hand():
  images = jnp.float32(_RNG.random((1, 6, 6, 3)))
  zero, none = jnp.zeros(1), jnp.zeros((1, 2))
  np.testing.assert_allclose(_AFFINE(images, zero, none, none), images)
  shifted = _AFFINE(images, zero, none, jnp.float32([[2, 1]]))
  np.testing.assert_allclose(shifted[:, :5, :4], images[:, 1:, 2:], atol=1e-6)
  np.testing.assert_allclose(shifted[:, 5, 5], images[:, 5, 5], atol=1e-6)
  turned = _AFFINE(images, jnp.full(1, jnp.pi / 2), none, none)
  np.testing.assert_allclose(turned[0], np.rot90(images[0]), atol=1e-5)


@pytest.mark.parametrize(
  "name, level, reference",
  [
    ("identity", 0.5, lambda image: image),
    ("autocontrast", 0.5, ImageOps.autocontrast),
    ("invert", -0.5, ImageOps.invert),
    ("posterize", 0.5, lambda image: ImageOps.posterize(image, 6)),
    ("brightness", 0.5, lambda i: ImageEnhance.Brightness(i).enhance(1.45)),
    ("brightness", -0.5, lambda i: ImageEnhance.Brightness(i).enhance(0.55)),
    ("contrast", 0.5, lambda i: ImageEnhance.Contrast(i).enhance(1.45)),
    ("contrast", -0.5, lambda i: ImageEnhance.Contrast(i).enhance(0.55)),
    ("colour", 0.5, lambda i: ImageEnhance.Color(i).enhance(1.45)),
    ("colour", -0.5, lambda i: ImageEnhance.Color(i).enhance(0.55)),
    ("sharpness", 0.5, lambda i: ImageEnhance.Sharpness(i).enhance(1.45)),
    ("sharpness", -0.5, lambda i: ImageEnhance.Sharpness(i).enhance(0.55)),
  ],
)
def test_colours_are_pillows(name, level, reference):
  images = _photos()
  views = _COLOURS(
    jnp.float32(images) / 255.0, _levels(len(images), **{name: level})
  )
  expected = np.stack([reference(Image.fromarray(image)) for image in images])
  # Pillow rounds, and leaves the border out of SMOOTH.
  inner = (slice(None), slice(1, -1), slice(1, -1))
  np.testing.assert_allclose(
    255 * np.asarray(views)[inner], np.float32(expected)[inner], atol=2.1
  )


def test_autocontrast_leaves_one_colour_alone():
  images = jnp.full((4, 28, 28, 3), 0.25)
  views = _COLOURS(images, _levels(4, autocontrast=0.5))
  np.testing.assert_allclose(views, images, atol=1e-6)


@pytest.mark.parametrize("name", _VIEWS)
def test_views_are_random_bounded_and_repeatable(name):
  images = jnp.tile(_photos(1), (64, 1, 1, 1))
  view = _VIEWS[name]
  views = view(images, jax.random.key(1))
  assert views.dtype == jnp.float32 and views.shape == images.shape
  assert np.abs(views).max() <= 1 + 1e-5
  np.testing.assert_array_equal(views, view(images, jax.random.key(1)))
  assert len(np.unique(views.reshape(64, -1), axis=0)) == 64
  assert not np.allclose(views, view(images, jax.random.key(2)))


def test_weak_views_stay_near_and_strong_ones_go_farther():
  images = _photos(64)
  plain = augment.normalise(images)
  weak, strong = (
    float(jnp.abs(view(images, jax.random.key(0)) - plain).mean())
    for view in _VIEWS.values()
  )
  assert 0.01 < weak < strong


def test_normalise():
  np.testing.assert_allclose(
    augment.normalise(jnp.uint8([0, 255])), [-1.0, 1.0]
  )

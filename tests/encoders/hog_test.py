from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from skimage import feature

from ecos_jax import config
from ecos_jax.data import digits
from ecos_jax.encoders import hog


def reference(images):
  return np.stack(
    [
      feature.hog(
        image,
        orientations=8,
        pixels_per_cell=(8, 8),
        cells_per_block=(3, 3),
        block_norm="L2",
        channel_axis=-1,
      )
      for image in images
    ]
  )


@pytest.mark.parametrize(
  "domain", [domain for domain in digits.DOMAINS if domain != "usps"]
)
def test_equals_scikit_image_on_the_digits(domain):
  data = config.Data(client=domain, train_images=600, test_images=200)
  images = digits.load(data, 1).test.images(np.arange(200), 28)
  np.testing.assert_allclose(hog.hog(images), reference(images), atol=1e-6)


def test_equals_scikit_image_on_noise():
  # Nearly every integer gradient occurs here, so every angle of one.
  images = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 3), np.uint8)
  np.testing.assert_allclose(hog.hog(images), reference(images), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, (4, 28, 28, 3), elements=st.integers(0, 3)))
def test_equals_scikit_image_where_channels_and_angles_tie(images):
  np.testing.assert_allclose(hog.hog(images), reference(images), atol=1e-6)


@pytest.mark.parametrize(
  ("right", "down", "orientation"),
  [
    (1, 0, 0),
    (-1, 0, 0),
    (1, 1, 2),
    (-1, -1, 2),
    (0, 1, 4),
    (0, -1, 4),
    (-1, 1, 6),
    (1, -1, 6),
  ],
)
def test_a_slope_is_in_the_bin_that_begins_at_its_angle(
  right, down, orientation
):
  y, x = np.mgrid[:28, :28]
  ramp = (128 + 2 * (right * x + down * y)).astype(np.uint8)
  image = np.repeat(ramp[..., None], 3, -1)[None]
  cell = np.asarray(hog.hog(image)).reshape(3, 3, 8)[1, 1]
  # All cells have the same gradient but those with the edge of the image.
  assert np.flatnonzero(cell) == [orientation]
  assert cell[orientation] >= 1 / 3


def test_an_inverted_image_has_the_same_features():
  images = np.random.default_rng(1).integers(0, 256, (9, 28, 28, 3), np.uint8)
  np.testing.assert_array_equal(hog.hog(images), hog.hog(255 - images))


def test_an_even_image_is_zero_and_finite():
  image = np.full((1, 28, 28, 3), 77, np.uint8)
  np.testing.assert_array_equal(hog.hog(image), np.zeros((1, 72)))


def test_no_image_has_no_features():
  assert hog.hog(np.zeros((0, 28, 28, 3), np.uint8)).shape == (0, 72)


def test_hog_grey_appends_means_over_squares_of_all_channels():
  images = np.random.default_rng(2).integers(0, 256, (5, 28, 28, 3), np.uint8)
  features = np.asarray(hog.hog_grey(images))
  np.testing.assert_array_equal(features[:, :72], hog.hog(images))
  for y in range(7):
    for x in range(7):
      square = images[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
      np.testing.assert_allclose(
        features[:, 72 + 7 * y + x],
        hog.GREY_WEIGHT * square.mean((1, 2, 3)) / 255,
        rtol=1e-6,
      )


@pytest.mark.parametrize(
  "images",
  [
    np.zeros((2, 28, 28, 1), np.uint8),
    np.zeros((2, 32, 32, 3), np.uint8),
    np.zeros((28, 28, 3), np.uint8),
    np.zeros((2, 28, 28, 3), np.float32),
  ],
)
def test_refuses_another_shape_or_type(images):
  for encode in (hog.hog, hog.hog_grey):
    with pytest.raises(ValueError, match=r"uint8 \(\d+, 28, 28, 3\), got"):
      encode(images)

import socket

import numpy as np
import pytest
from sklearn import discriminant_analysis

from ecos_jax.data import digits_made
from ecos_jax.encoders import hog


def rng(seed=0):
  return np.random.default_rng(seed)


def no_network(*args):
  raise AssertionError("the network was used")


@pytest.fixture
def black_and_white(monkeypatch):
  photos = [np.full((40, 30, 3), value, np.uint8) for value in (0, 255)]
  monkeypatch.setattr(digits_made, "_photos", lambda: photos)


def test_photos_are_embedded_and_in_colour(monkeypatch):
  monkeypatch.setattr(socket.socket, "connect", no_network)
  digits_made._photos.cache_clear()
  photos = digits_made._photos()
  assert len(photos) == 7
  for photo in photos:
    assert photo.dtype == np.uint8
    assert photo.shape[2] == 3
    assert np.ptp(photo.astype(int), -1).mean() > 5


def test_mnist_m_is_the_difference_of_patch_and_digit(black_and_white):
  digits = rng().integers(0, 256, (50, 28, 28), np.uint8)
  images = digits_made.mnist_m(digits, rng())
  assert images.shape == (50, 28, 28, 3)
  assert images.dtype == np.uint8
  assert (images == images[..., :1]).all()
  on_black = (images[..., 0] == digits).all((1, 2))
  on_white = (images[..., 0] == 255 - digits).all((1, 2))
  assert (on_black ^ on_white).all()
  assert 10 < on_black.sum() < 40


def test_mnist_m_of_blank_digits_is_patches_of_the_photos():
  photos = digits_made._photos()
  patches = digits_made.mnist_m(np.zeros((20, 28, 28), np.uint8), rng())
  for patch in patches[:8]:
    found = False
    for photo in photos:
      corners = np.argwhere((photo[:-27, :-27] == patch[0, 0]).all(-1))
      found |= any(
        (photo[y : y + 28, x : x + 28] == patch).all() for y, x in corners
      )
    assert found
  # From many places, not from one.
  assert len({patch.tobytes() for patch in patches}) == 20


def test_the_fonts_are_those_with_digits():
  rasters, half_widths = digits_made._glyphs()
  cell = digits_made._CELL
  glyphs = rasters.reshape(-1, 10, cell, cell)
  assert len(glyphs) > 10
  assert half_widths.shape == (len(glyphs) * 10,)
  # The margin that drawing relies on is blank.
  assert not glyphs[:, :, [0, -1]].any()
  assert not glyphs[..., [0, -1]].any()
  # Ten different digits in each font, and no two fonts alike.
  for font in glyphs:
    assert len({glyph.tobytes() for glyph in font}) == 10
  assert len({font.tobytes() for font in glyphs}) == len(glyphs)
  # In every font a one is lighter than an eight.
  ink = glyphs.sum((2, 3))
  assert (ink[:, 1] < ink[:, 8]).all()


def test_synthdigits_are_varied_and_balanced():
  images, labels = digits_made.synthdigits(2000, rng())
  assert images.shape == (2000, 28, 28, 3)
  assert images.dtype == np.uint8
  assert labels.dtype == np.int64
  counts = np.bincount(labels, minlength=10)
  assert counts.shape == (10,)
  assert counts.min() > 150
  # Colours of all kinds, and contrast in nearly every image.
  means = images.mean((1, 2))
  assert (means.std(0) > 40).all()
  contrast = images.astype(float).std((1, 2)).max(-1)
  assert np.quantile(contrast, 0.02) > 10


def test_synthdigits_can_be_read_by_their_labels():
  images, labels = digits_made.synthdigits(3000, rng())
  features = np.asarray(hog.hog(images))
  model = discriminant_analysis.LinearDiscriminantAnalysis()
  model.fit(features[:2500], labels[:2500])
  assert model.score(features[2500:], labels[2500:]) > 0.7


def test_made_domains_are_deterministic_by_seed():
  first = digits_made.synthdigits(50, rng(1))
  again = digits_made.synthdigits(50, rng(1))
  other = digits_made.synthdigits(50, rng(2))
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])
  assert (first[0] != other[0]).any()
  digits = rng().integers(0, 256, (50, 28, 28), np.uint8)
  patches = digits_made.mnist_m(digits, rng(1))
  np.testing.assert_array_equal(patches, digits_made.mnist_m(digits, rng(1)))
  assert (patches != digits_made.mnist_m(digits, rng(2))).any()


def test_none_are_made_of_none():
  images, labels = digits_made.synthdigits(0, rng())
  assert (images.shape, labels.shape) == ((0, 28, 28, 3), (0,))
  blank = np.zeros((0, 28, 28), np.uint8)
  assert digits_made.mnist_m(blank, rng()).shape == (0, 28, 28, 3)

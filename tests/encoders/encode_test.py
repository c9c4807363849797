import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.data import pools
from ecos_jax.encoders import encode
from ecos_jax.encoders import registry

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 3), np.uint8)


@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_is_what_the_encoder_makes_of_all_images(batch_size):
  got = encode.encode(IMAGES, "hog", batch_size=batch_size)
  assert got.shape == (9, 72) and got.dtype == np.float32
  expected = registry.encode(registry.get("hog"), IMAGES)
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_grey_images_and_those_of_another_size():
  grey = encode.encode(IMAGES[..., 0], "hog")
  rgb = encode.encode(np.repeat(IMAGES[..., :1], 3, axis=3), "hog")
  np.testing.assert_array_equal(grey, rgb)
  # An edge at the same place, in 56 by 56 pixels.
  edge = np.zeros((1, 28, 28), np.uint8)
  edge[:, :, 14:] = 200
  large = edge.repeat(2, axis=1).repeat(2, axis=2)
  np.testing.assert_allclose(
    encode.encode(large, "hog"), encode.encode(edge, "hog"), atol=0.05
  )


def test_sources_pools_and_encoders_are_taken():
  source = pools.ArraySource("a", IMAGES)
  expected = encode.encode(IMAGES)
  for images in (source, pools.Pool([source])):
    got = encode.encode(images, registry.get("hog_grey"))
    np.testing.assert_array_equal(got, expected)


def test_wrong_arguments_are_named():
  with pytest.raises(errors.EcosError, match="`images` must be uint8"):
    encode.encode(IMAGES.astype(np.float32))
  with pytest.raises(errors.EcosError, match="unknown encoder 'nothing'"):
    encode.encode(IMAGES, "nothing")

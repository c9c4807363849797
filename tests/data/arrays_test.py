import io

import numpy as np
from PIL import Image
import pytest

from ecos_jax import errors
from ecos_jax.data import arrays


def random_images(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def decode(data):
  return np.asarray(Image.open(io.BytesIO(data)))


class TestArraySource:
  def test_gives_images_and_labels_by_index(self):
    images = random_images(5, 8, 8, 3)
    source = arrays.ArraySource("a", images, np.arange(5, dtype=np.uint8))
    indices = np.array([3, 0, 3])
    assert len(source) == 5
    np.testing.assert_array_equal(source.images(indices, 8), images[indices])
    labels = source.labels(indices)
    assert labels.dtype == np.int64
    assert labels.tolist() == [3, 0, 3]

  def test_labels_are_unknown_without_any(self):
    source = arrays.ArraySource("a", random_images(5, 8, 8, 3))
    assert source.labels(np.array([1, 2])).tolist() == [-1, -1]

  @pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 8, 1)])
  @pytest.mark.parametrize("size", [8, 6])
  def test_grey_is_repeated(self, shape, size):
    images = random_images(*shape)
    got = arrays.ArraySource("a", images).images(np.arange(3), size)
    assert got.shape == (3, size, size, 3)
    np.testing.assert_array_equal(got, np.repeat(got[..., :1], 3, -1))

  def test_encoded_is_a_png_of_the_image(self):
    images = random_images(3, 8, 9, 3)
    source = arrays.ArraySource("a", images)
    assert source.encoded(2).startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode(source.encoded(2)), images[2])

  def test_digest_is_of_the_content(self):
    images, labels = random_images(3, 8, 8, 3), np.arange(3)
    digest = arrays.ArraySource("a", images, labels).digest
    assert arrays.ArraySource("b", images.copy(), labels).digest == digest
    assert arrays.ArraySource("a", images).digest != digest
    assert arrays.ArraySource("a", images, labels[::-1]).digest != digest
    other = images.copy()
    other[1, 2, 3, 0] ^= 1
    assert arrays.ArraySource("a", other, labels).digest != digest
    reshaped = images.reshape(3, 4, 16, 3)
    assert arrays.ArraySource("a", reshaped, labels).digest != digest

  @pytest.mark.parametrize(
    "images",
    [
      np.zeros((2, 8, 8, 3)),
      np.zeros((2, 8), np.uint8),
      np.zeros((2, 8, 8, 4), np.uint8),
      np.zeros((2, 0, 0, 3), np.uint8),
      np.zeros((1237, 8, 8, 3)),
    ],
  )
  def test_refuses_other_images_and_tells_no_count(self, images):
    with pytest.raises(errors.EcosError, match="a must be uint8") as error:
      arrays.ArraySource("a", images)
    assert "1237" not in str(error.value)

  @pytest.mark.parametrize(
    "dtype",
    [bool, np.int8, np.uint8, np.uint16, np.uint32, np.uint64, ">i8", ">u2"],
  )
  @pytest.mark.parametrize("shape", [(3,), (3, 1)])
  def test_labels_of_any_type_of_integer(self, dtype, shape):
    """MNIST's are uint8, Keras has [n, 1], other machines other orders."""
    labels = np.array([1, 0, 1]).astype(dtype).reshape(shape)
    source = arrays.ArraySource("a", random_images(3, 8, 8, 3), labels)
    assert source.classes == 2
    got = source.labels(np.array([2, 1, 0]))
    assert (got.dtype, got.tolist()) == (np.int64, [1, 0, 1])

  def test_a_label_that_is_no_class_is_refused(self):
    for top in (20240501, 2**63):
      labels = np.array([0, top], np.uint64)
      with pytest.raises(errors.EcosError, match="must be below 100000"):
        arrays.ArraySource("a", random_images(2, 8, 8, 3), labels)

  @pytest.mark.parametrize("labels", [np.zeros(3), np.zeros(2, int)])
  def test_refuses_other_labels(self, labels):
    with pytest.raises(errors.EcosError, match=r"a must be \[n\] integers"):
      arrays.ArraySource("a", random_images(3, 8, 8, 3), labels)

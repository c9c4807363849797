import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ecos_jax.clustering.kernels import gpu
from ecos_jax.clustering.kernels import parts


def normal(*shape):
  random = np.random.default_rng(shape)
  return random.normal(size=shape).astype(np.float32)


def split(x, count):
  """Returns the float16 parts that the kernel makes, in float64."""
  scale = parts.scale(jnp.max(jnp.abs(x)))
  found = jax.jit(parts.split, static_argnums=1)(x * scale, count)
  return np.asarray(found, np.float64) / float(scale)


@pytest.mark.parametrize("largest", [1e-30, 1.0, 1e30])
def test_two_parts_are_the_whole_to_float32s_rounding(largest):
  x = normal(1000) * np.float32(largest) / 8
  error = np.abs(np.sum(split(x, 2), axis=0) - x)
  # Of each number, or of the largest where float16 ends.
  assert np.all(error <= np.maximum(2.0**-23 * np.abs(x), 2.0**-28 * x.max()))


def test_one_part_is_the_whole_of_bfloat16():
  x = normal(1000).astype(ml_dtypes.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(split(x, 1)[0], x)


def accumulate(total, a, b):
  """Models a tensor core of an H100: total + a.b, where low bits are dropped.

  Products and total are cut to 26 bits below the largest of them, added, and
  cut to 24 (Fasi, Higham, Mikaitis and Pranesh, 2021: "Numerical behavior of
  NVIDIA tensor cores"). An H100 was seen to keep 26: 1 + 15 * 2^-25 counts the
  small terms, 1 + 15 * 2^-26 does not.
  """

  def cut(values, largest, bits):
    unit = np.exp2(np.floor(np.log2(largest)) - bits + 1)
    return np.trunc(values / unit) * unit

  products = a[:, None] * b[None]
  largest = np.maximum(np.abs(products).max(-1), np.abs(total))
  largest = np.maximum(largest, 1e-30)
  exact = cut(products, largest[..., None], 26).sum(-1) + cut(
    total, largest, 26
  )
  return cut(exact, np.maximum(np.abs(exact), 1e-30), 24)


@pytest.mark.parametrize("row_parts", [1, 2])
@pytest.mark.parametrize("sign", ["positive", "mixed"])
@pytest.mark.parametrize("d", [64, 512])
def test_modelled_tensor_cores_are_as_good_as_float32(sign, d, row_parts):
  features, centroids = normal(100, d), normal(101, d)
  if sign == "positive":  # The hardest: whatever is cut off adds up.
    features, centroids = np.abs(features), np.abs(centroids)
  if row_parts == 1:
    features = features.astype(np.float16).astype(np.float32)
  x, c = split(features, row_parts), split(centroids, 2)
  products = np.zeros((100, 101), np.float32)
  for start in range(0, d, gpu._FEATURES):
    total = np.zeros((100, 101))
    for i, j in parts.pairs(row_parts, 2):
      for first in range(start, start + gpu._FEATURES, 16):
        part = slice(first, first + 16)
        total = accumulate(total, x[i][:, part], c[j][:, part])
    products += total.astype(np.float32)

  float32 = np.zeros((100, 101), np.float32)
  for column in range(d):
    float32 += np.outer(features[:, column], centroids[:, column])
  exact = np.float64(features) @ np.float64(centroids).T
  error, bearable = np.abs(products - exact), np.abs(float32 - exact)
  assert np.max(error) < np.max(bearable)
  # Short sums of positive numbers are where float32 does best.
  worse = 2.5 if sign == "positive" and d == 64 else 1
  rms, bearable = (np.sqrt(np.mean(e**2)) for e in (error, bearable))
  assert rms < worse * bearable

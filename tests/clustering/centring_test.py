import ml_dtypes
import numpy as np
import pytest

from ecos_jax.clustering import centring
from ecos_jax.clustering import chunks


def features(mean, n=3000, d=5, dtype=np.float32):
  """Of a spread of 1, and a mean of so many spreads."""
  random = np.random.default_rng(0)
  rows = random.normal(size=(n, d)) + mean
  return (rows / np.sqrt(d)).astype(dtype)


@pytest.mark.parametrize("mean", [17, 1e4, -1e4])
def test_a_large_mean_is_the_offset(mean):
  rows = features(mean)
  offset = centring.offset(rows)
  assert offset.dtype == np.float32
  np.testing.assert_allclose(offset, rows.mean(axis=0), atol=0.1)


def test_a_small_mean_leaves_the_features_as_they_are():
  rows = features(15)
  offset = centring.offset(rows)
  assert not offset.any()
  assert centring.without(rows, offset) is rows


def test_equal_rows_have_no_offset():
  assert not centring.offset(np.full((3000, 4), 0.1, np.float32)).any()


def test_rows_that_are_not_finite_have_no_offset():
  rows = features(1e4)
  rows[0] = np.nan, np.inf, -np.inf, np.inf, 0
  assert not centring.offset(rows).any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_the_offset_is_subtracted_in_float32(dtype):
  rows = features(40, dtype=dtype)
  offset = centring.offset(rows)
  expected = rows.astype(np.float64) - offset
  centred = centring.without(rows, offset)
  assert centred.shape == rows.shape
  assert centred.dtype == np.float32
  parts = list(chunks.blocks(centred, 1024, slice(2, 1000)))
  assert [start for start, _ in parts] == [0, 1024, 2048]
  for start, block in parts:
    assert block.dtype == np.float32
    part = expected[start : start + 1024][2:1000]
    np.testing.assert_allclose(block, part, rtol=1e-7)
  some = np.array([7, 3, 3])
  np.testing.assert_allclose(centred.take(some), expected[some], rtol=1e-7)

"""Subtracts a large common offset from features, which float32 cannot bear.

The nearest centroid maximises x.c - |c|^2 / 2. If all features lie far from
zero and near one another, these products are almost the same, and rounding
decides between them: float32's error is about 1e-7 |x|^2. Subtracting one
vector from all features and centroids changes no distance, so a vector near the
mean is subtracted. Features whose mean is not large are used as they are,
without a copy.
"""

from collections.abc import Iterator

import numpy as np

from ecos_jax.clustering import chunks

# A mean of more spreads than this is large: below it, float32's error is under
# about 1e-5 of the squared spread.
_LARGE = 16.0
_ROWS = 1024


def offset(features: chunks.Features, large: float = _LARGE) -> np.ndarray:
  """Returns the mean of features, float32 [d], or zeros if it is not large.

  It is large if it is longer than `large` times the spread, the root of the
  mean squared distance to it. Both are those of at most 2,047 rows, evenly
  spaced. If all these are equal, the result is zeros.

  Args:
    features: [n, d] float, n at least 1.
    large: In multiples of the spread.
  """
  n = features.shape[0]
  rows = chunks.take(features, np.arange(0, n, max(n // _ROWS, 1)))
  mean = rows.mean(axis=0, dtype=np.float64)
  # Rows with NaN or infinity have no offset; they are refused elsewhere.
  with np.errstate(invalid="ignore"):
    spread = np.square(rows - mean).sum(axis=1).mean()
  if 0 < large**2 * spread < mean @ mean:
    return mean.astype(np.float32)
  return np.zeros(len(mean), np.float32)


def without(features: chunks.Features, offset: np.ndarray) -> chunks.Features:
  """Returns features minus an offset, float32, subtracted as they are read.

  An offset of zeros returns the features themselves.

  Args:
    features: [n, d].
    offset: float32 [d].
  """
  return _Centred(features, offset) if offset.any() else features


class _Centred:
  """See `without`; it has the methods of `chunks.Rows`."""

  dtype = np.dtype(np.float32)

  def __init__(self, features: chunks.Features, offset: np.ndarray):
    self.shape = features.shape
    self._features = features
    self._offset = offset

  def blocks(
    self, rows: int, part: slice = slice(None)
  ) -> Iterator[tuple[int, np.ndarray]]:
    for start, block in chunks.blocks(self._features, rows, part):
      yield start, block.astype(np.float32) - self._offset

  def take(self, indices: np.ndarray) -> np.ndarray:
    return chunks.take(self._features, indices) - self._offset

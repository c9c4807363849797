"""The client's votes: one sample, one vote, whatever centroids were sent.

The privacy of the answer rests on one fact: adding or removing a sample changes
one count by one. For that the vote of a sample must be a function of nothing
but that sample and the centroids. A floating-point matrix product is not: its
last bit depends on how many rows are multiplied at once and where the row lies
among them, so a sample that comes or goes could flip the votes of others, and a
dishonest server can place centroids where many samples are about to flip.

So here the products are exact. Every feature vector and every centroid is
rounded to multiples of a power of two of its own, to so few bits that double
precision adds all d products without any error, in any order. What is left are
operations on single numbers. Any finite float32 centroids will do, 1e30 as well
as 1e-40.
"""

import math

import numpy as np

from ecos_jax import messages

_MEMORY_BUDGET = 2**26


def rounded(rows: np.ndarray) -> np.ndarray:
  """Returns rows [n, d] as float64 whose products are exact.

  Each number is a multiple of 2^e, at most 2^bits times it. Each row has an e
  of its own; d products of two rows add up without error, in any order. A NaN
  or an infinity counts as 0.
  """
  # d products of at most 2^(2 bits) stay below 2^53.
  bits = (53 - math.ceil(math.log2(rows.shape[1]))) // 2
  with np.errstate(over="ignore"):
    rows = rows.astype(np.float32)
  rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
  rows = rows.astype(np.float64)
  _, exponents = np.frexp(np.abs(rows).max(axis=1, keepdims=True, initial=0))
  exponents -= bits
  return np.ldexp(np.rint(np.ldexp(rows, -exponents)), exponents)


def nearest(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Returns the nearest centroid of each sample, [n] int64.

  Squared Euclidean distance, ties to the lowest index. Vectors are rounded to
  20 to 26 significant bits, fewer for larger d. The result for a row depends on
  no other row. A sample with a NaN or an infinity in its features votes as if
  those were 0: to refuse would tell the server of one sample.

  Args:
    features: [n, d] float.
    centroids: [R, d] float.

  Raises:
    ProtocolError: The centroids are not finite, or d differs.
  """
  if centroids.ndim != 2 or not np.isfinite(centroids).all():
    raise messages.ProtocolError("centroids must be [R, d], without NaN or Inf")
  if features.ndim != 2 or features.shape[1] != centroids.shape[1]:
    raise messages.ProtocolError(
      f"features must have d = {centroids.shape[1]} as the centroids, got an "
      f"array of {features.ndim} axes with d = {features.shape[-1]}"
    )
  r, d = centroids.shape
  points = rounded(centroids)
  # The nearest centroid has the largest x.c - |c|^2 / 2.
  half_norms = np.einsum("rd,rd->r", points, points) / 2
  votes = np.empty(len(features), np.int64)
  block = max(1, _MEMORY_BUDGET // (16 * (r + d)))
  for start in range(0, len(features), block):
    rows = rounded(features[start : start + block])
    votes[start : start + block] = np.argmax(
      rows @ points.T - half_norms, axis=1
    )
  return votes


def coverage(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Returns the number of samples nearest to each centroid, [R] int64.

  It is private: it does not leave the client without noise.

  Args:
    features: [n, d] float; n may be 0.
    centroids: [R, d] float.

  Raises:
    ProtocolError: The centroids are not finite, or d differs.
  """
  votes = nearest(features, centroids)
  return np.bincount(votes, minlength=len(centroids))

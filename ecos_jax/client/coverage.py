"""The client's votes: one sample, one vote, whatever centroids were sent.

The privacy of the answer rests on one fact: adding or removing a sample, or a
person of whose samples one votes, changes one count by one. So the vote of a
sample must be a function of that sample and the centroids alone. A
floating-point matrix product is not: its last bit depends on how many rows are
multiplied at once and where the row lies among them. A sample that comes or
goes could flip the votes of others, and a dishonest server can place centroids
where many samples are about to flip.

So here the products are exact. Each feature vector and each centroid is rounded
to multiples of its own power of two, to so few bits that double precision adds
all d products without any error, in any order. The other operations are on
single numbers. Any finite float32 centroids will do, 1e30 as well as 1e-40.
"""

from collections.abc import Iterable
import math

import numpy as np

from ecos_jax import messages
from ecos_jax.privacy import mechanisms
from ecos_jax.privacy import units

# Numbers in a block of rows and scores: within the processor's cache if that
# leaves `_ROWS` rows, and never more than `_LARGEST`.
_CACHED = 2**18
_ROWS = 256
_LARGEST = 2**22


def rounded(rows: np.ndarray) -> np.ndarray:
  """Returns rows [n, d] as float64 whose products are exact.

  The numbers of a row are multiples of a power of two, at most 2^bits times it.
  So d products of two rows add up without error, in any order. NaN and infinity
  count as 0.
  """
  # d products of at most 2^(2 bits) stay below 2^53.
  bits = (53 - math.ceil(math.log2(rows.shape[1]))) // 2
  with np.errstate(over="ignore", invalid="ignore"):
    rows = rows.astype(np.float32)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
  if not np.isfinite(largest).all():
    rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
  _, exponents = np.frexp(largest)
  # The sum has no bits below 2^(exponent - bits): adding rounds to even.
  anchors = np.ldexp(1.5, exponents - bits + 52)
  rows = rows + anchors
  rows -= anchors
  return rows


def nearest(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Returns the nearest centroid of each sample, [n] int64; it is private.

  Squared Euclidean distance, ties to the lowest index. Vectors are rounded to
  20 to 26 significant bits, fewer for larger d. The result for a row depends on
  no other row. A NaN or an infinity in a sample's features counts as 0:
  refusing it would tell the server of one sample.

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
  block = max(1, min(max(_CACHED // (r + d), _ROWS), _LARGEST // (r + d)))
  for start in range(0, len(features), block):
    scores = rounded(features[start : start + block]) @ points.T
    scores -= half_norms
    votes[start : start + block] = scores.argmax(axis=1)
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


def release(
  votes: np.ndarray,
  centroids: int,
  mechanism: mechanisms.Mechanism,
  repetitions: int = 1,
  persons: units.Persons | None = None,
) -> np.ndarray:
  """Returns noised coverage, [repetitions, R] int64: what may leave.

  Args:
    votes: [n] int64, one vote for each sample.
    centroids: R.
    mechanism: Draws the subsample and the noise.
    repetitions: Independent draws. A response has one; the audit takes many.
    persons: Whose the samples are, where persons are the unit.
  """
  taken = mechanism.voters(len(votes), persons, repetitions)
  cells = votes + centroids * np.arange(repetitions)[:, None]
  counts = np.bincount(cells[taken], minlength=repetitions * centroids)
  return mechanism.noised(counts.reshape(repetitions, centroids))


def respond(
  query: messages.Query,
  features: Iterable[np.ndarray],
  mechanism: mechanisms.Mechanism,
  persons: units.Persons | None = None,
) -> messages.Response:
  """Returns the response to a query, drawn once.

  Args:
    query: From the cloud.
    features: Blocks [b, d] of the private samples, made with the query's
      encoder.
    mechanism: Draws the subsample and the noise.
    persons: Whose the samples are, where persons are the unit.

  Raises:
    EcosError: d differs, or the persons do not fit.
  """
  votes = [nearest(block, query.centroids) for block in features]
  none = np.zeros(0, np.int64)
  scores = release(
    np.concatenate([none, *votes]),
    len(query.centroids),
    mechanism,
    persons=persons,
  )[0]
  return messages.Response(scores, query.digest, mechanism.statement)

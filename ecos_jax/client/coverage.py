"""The client's votes: a sample's votes depend on it and the question alone.

The privacy of the answer rests on one fact: adding or removing a sample, or a
person of whose samples one votes, changes one count per centroid by one, and m
of the sums per direction and one count of voters by one. So the votes of a
sample must be a function of that sample and the question alone. A
floating-point matrix product is not: its last bit depends on how many rows are
multiplied at once and where the row lies among them. A sample that comes or
goes could flip the votes of others, and a dishonest server can place centroids
where many samples are about to flip.

So here the products are exact. Each feature vector, centroid and direction is
rounded to multiples of its own power of two, to so few bits that double
precision adds all d products without any error, in any order. The other
operations are on single numbers. Any finite float32 centroids and directions
will do, 1e30 as well as 1e-40.
"""

from collections.abc import Iterable, Sequence
import math
from typing import NamedTuple

import numpy as np

from ecos_jax import messages
from ecos_jax.clustering import centring
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


def centred(rows: np.ndarray, offset: np.ndarray) -> np.ndarray:
  """Returns `rounded` rows [n, d] minus a public offset, float32 [d].

  NaN and infinity count as the offset.
  """
  with np.errstate(over="ignore", invalid="ignore"):
    return rounded(rows.astype(np.float32) - offset.astype(np.float64))


def _check_dimension(features: np.ndarray, d: int) -> None:
  # The text does not tell the number of samples, which is private.
  if features.ndim != 2 or features.shape[1] != d:
    raise messages.ProtocolError(
      f"features must be [n, d], with d = {d} as the question"
    )


def nearest(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Returns the nearest centroid of each sample, [n] int64; it is private.

  Squared Euclidean distance, ties to the lowest index. If the centroids lie far
  from zero and near one another, their mean is subtracted from everything
  (`clustering.centring`). Vectors are rounded to 20 to 26 significant bits,
  fewer for larger d. The result for a row depends on no other row. A NaN or an
  infinity in a sample's features counts as 0, or as that mean: refusing it
  would tell the server of one sample.

  Args:
    features: [n, d] float.
    centroids: [R, d] float.

  Raises:
    ProtocolError: The centroids are not finite, or d differs.
  """
  if centroids.ndim != 2 or not np.isfinite(centroids).all():
    raise messages.ProtocolError("centroids must be [R, d], without NaN or Inf")
  _check_dimension(features, centroids.shape[1])
  r, d = centroids.shape
  offset = centring.offset(centroids)
  points = centred(centroids, offset)
  # The nearest centroid has the largest x.c - |c|^2 / 2.
  half_norms = np.einsum("rd,rd->r", points, points) / 2
  votes = np.empty(len(features), np.int64)
  block = max(1, min(max(_CACHED // (r + d), _ROWS), _LARGEST // (r + d)))
  for start in range(0, len(features), block):
    scores = centred(features[start : start + block], offset) @ points.T
    scores -= half_norms
    votes[start : start + block] = scores.argmax(axis=1)
  return votes


def signs(
  features: np.ndarray, directions: np.ndarray, mean: np.ndarray, votes: int
) -> np.ndarray:
  """Returns the votes of each sample on the directions, [n, p] int8; private.

  A sample x has the coordinates z = directions (x - mean). It votes 1 or -1,
  the sign of z, on the `votes` directions where z is largest; ties go to the
  lowest index, and a z of 0 is no vote. Vectors are rounded as for `nearest`.
  The result for a row depends on no other row. A NaN or an infinity in a
  sample's features counts as the mean.

  Args:
    features: [n, d] float.
    directions: [p, d] float, finite.
    mean: [d] float32, finite.
    votes: m, from 1 to p.

  Raises:
    ProtocolError: d differs.
  """
  p, d = directions.shape
  _check_dimension(features, d)
  axes = rounded(directions)
  result = np.zeros((len(features), p), np.int8)
  block = max(1, min(max(_CACHED // (p + d), _ROWS), _LARGEST // (p + d)))
  for start in range(0, len(features), block):
    part = slice(start, start + block)
    z = centred(features[part], mean) @ axes.T
    chosen = np.argsort(-np.abs(z), axis=1, kind="stable")[:, :votes]
    cast = np.sign(np.take_along_axis(z, chosen, axis=1)).astype(np.int8)
    np.put_along_axis(result[part], chosen, cast, axis=1)
  return result


class Votes(NamedTuple):
  """The votes of n samples; they are private.

  Attributes:
    nearest: [n] int64, the nearest centroid; None if there are no centroids.
    signs: [n, p] int8, from `signs`; None if there are no directions.
    rows: [n] int64, the row of the sums that a sample's signs go to; -1: none.
  """

  nearest: np.ndarray | None
  signs: np.ndarray | None
  rows: np.ndarray


def cast(
  query: messages.Query,
  features: np.ndarray,
  labels: np.ndarray | None = None,
) -> Votes:
  """Returns the votes of samples on a question.

  Args:
    query: From the cloud; not trusted.
    features: [n, d] float; n may be 0.
    labels: [n] int64, the classes; only for a question by class. A sample whose
      label is no class has no votes on directions.

  Raises:
    ProtocolError: d differs.
  """
  rows = np.zeros(len(features), np.int64)
  if query.classes:
    assert labels is not None
    known = (labels >= 0) & (labels < query.classes)
    rows = np.full(len(features), -1)
    rows[known] = labels[known]
  closest, signed = None, None
  if query.centroids is not None:
    closest = nearest(features, query.centroids)
  if query.directions is not None and query.mean is not None:
    signed = signs(features, query.directions, query.mean, query.votes)
  return Votes(closest, signed, rows)


def exact(
  votes: Votes, query: messages.Query, taken: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Returns the sums of votes, int64 [t, R] and [t, K or 1, p + 1], or None.

  They are private: they do not leave the client without noise.

  Args:
    votes: From `cast`.
    query: The question.
    taken: [t, n] bool, the samples that take part in each of t subsamples.
  """
  counts, sums = None, None
  if votes.nearest is not None and query.centroids is not None:
    r = len(query.centroids)
    cells = votes.nearest + r * np.arange(len(taken))[:, None]
    counts = np.bincount(cells[taken], minlength=r * len(taken))
    counts = max(query.weight, 1) * counts.reshape(-1, r)
  if votes.signs is not None:
    sums = np.zeros((len(taken), *query.sums), np.int64)
    for row in np.unique(votes.rows[votes.rows >= 0]):
      own = votes.rows == row
      sums[:, row, :-1] = np.einsum(
        "tn,np->tp", taken[:, own], votes.signs[own], dtype=np.int64
      )
      sums[:, row, -1] = taken[:, own].sum(axis=1)
  return counts, sums


def release(
  votes: Votes,
  query: messages.Query,
  mechanism: mechanisms.Mechanism,
  repetitions: int = 1,
  persons: units.Persons | None = None,
) -> np.ndarray:
  """Returns noised sums, [repetitions, n] int64: what may leave.

  A row is the scores [R] and the flattened sums, as far as they are asked for.

  Args:
    votes: From `cast`.
    query: The question.
    mechanism: Draws the subsample and the noise.
    repetitions: Independent draws. A response has one; the audit takes many.
    persons: Whose the samples are, where persons are the unit.
  """
  if (mechanism.bins, mechanism.weight) != (query.bins, query.weight):
    raise ValueError("the mechanism is for another number of votes")
  # A sample takes part with all its votes or with none, as is accounted for.
  taken = mechanism.voters(len(votes.rows), persons, repetitions)
  parts = [part for part in exact(votes, query, taken) if part is not None]
  flat = [part.reshape(repetitions, -1) for part in parts]
  return mechanism.noised(np.concatenate(flat, axis=1))


def _joined(votes: Sequence[Votes]) -> Votes:
  near = [part.nearest for part in votes if part.nearest is not None]
  signed = [part.signs for part in votes if part.signs is not None]
  return Votes(
    np.concatenate(near) if near else None,
    np.concatenate(signed) if signed else None,
    np.concatenate([part.rows for part in votes]),
  )


def respond(
  query: messages.Query,
  features: Iterable[np.ndarray],
  mechanism: mechanisms.Mechanism,
  labels: np.ndarray | None = None,
  persons: units.Persons | None = None,
) -> messages.Response:
  """Returns the response to a query, drawn once.

  Args:
    query: From the cloud.
    features: Blocks [b, d] of the private samples, made with the query's
      encoder.
    mechanism: Draws the subsample and the noise.
    labels: [n] int64, the classes of all samples; for a question by class.
    persons: Whose the samples are, where persons are the unit.

  Raises:
    EcosError: d differs, or the number of ids.
  """
  none = np.zeros(0, np.int64)
  start = 0
  votes = [cast(query, np.zeros((0, query.dimension), np.float32), none)]
  for block in features:
    own = None if labels is None else labels[start : start + len(block)]
    votes.append(cast(query, block, own))
    start += len(block)
  noised = release(_joined(votes), query, mechanism, persons=persons)[0]
  r = 0 if query.centroids is None else len(query.centroids)
  return messages.Response(
    scores=noised[:r] if r else None,
    query_digest=query.digest,
    statement=mechanism.statement,
    sums=noised[r:].reshape(query.sums) if query.votes else None,
  )

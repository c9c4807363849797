"""Groups of clients whose answers are alike, where the noise lets them be seen.

The answers of n clients are the rows of a matrix, in units of their noise. If
all clients are alike, every row is a multiple of one common row, plus noise:
the matrix has one large singular value. Clients of g kinds give g large ones.
How large the others are by chance is simulated, with clients that are alike
(parallel analysis: Horn, Psychometrika 1965). Only if the g-th is larger, the
answers are divided: they are projected on the first g singular vectors, divided
by their length, since clients of one kind differ in size, and grouped by
k-means (Dhillon and Modha, Machine Learning 2001).

All of it post-processes noised answers: it costs no epsilon.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import special

from ecos_jax import messages
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import density as density_lib
from ecos_jax.cloud import directions as directions_lib
from ecos_jax.cloud import question
from ecos_jax.cloud import scores as scores_lib
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import start as start_lib

# Alike clients seem to differ in one of 20 runs: (1 + 9) / (1 + 199).
_SIMULATIONS = 199
_EXCEEDED = 9
_STARTS = 10


class Groups(NamedTuple):
  """The answers by group.

  Attributes:
    members: int64 [n], the group of each answer; group 0 has the most. All are
      in group 0 if the answers do not tell the groups apart.
    most: How many groups the answers tell apart at most; 1: none.
    differences: float64 [min(n, D)], the singular values of the answers, of D
      numbers each, in units of their noise. The first is what they have in
      common, the others are differences.
    chance: What a difference must exceed: alike clients rarely do.
  """

  members: np.ndarray
  most: int
  differences: np.ndarray
  chance: float


def find(
  features: chunks.Features,
  book: codebook_lib.Codebook,
  query: messages.Query,
  responses: Sequence[messages.Response],
  groups: int,
  key: jax.Array,
) -> Groups:
  """Returns the groups of the answers; deterministic given the key.

  With answers by class, those of all classes are added up first.

  Args:
    features: [N, d], the pool.
    book: The codebook that the query is about, of R clusters.
    query: What was asked.
    responses: One a client, from `question.read`.
    groups: g, how many groups to make; 1 or more.
    key: Random key.
  """
  scale = np.array([each.statement.scale for each in responses])
  classes = max(query.classes, 1)
  rows = np.stack([_row(each, classes) for each in responses])
  rows /= scale[:, None]
  mean, covariance = _alike(features, book, query, responses, key)
  chance = _chance(rows, scale, mean, covariance, jax.random.fold_in(key, 1))
  vectors, differences, _ = np.linalg.svd(rows, full_matrices=False)
  most = 1 + int(np.cumprod(differences[1:] > chance).sum())
  members = np.zeros(len(rows), np.int64)
  if 1 < groups <= most:
    points = vectors[:, :groups] * differences[:groups]
    members = _clusters(points, groups, jax.random.fold_in(key, 2))
  return Groups(members, most, differences, chance)


def _row(response: messages.Response, classes: int) -> np.ndarray:
  """Returns an answer as one row, whose noise has the response's scale."""
  parts = [] if response.scores is None else [response.scores]
  if response.sums is not None:
    parts.append(response.sums.sum(axis=0) / classes**0.5)
  return np.concatenate(parts).astype(np.float64)


def _alike(
  features: chunks.Features,
  book: codebook_lib.Codebook,
  query: messages.Query,
  responses: Sequence[messages.Response],
  key: jax.Array,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean [D] and covariance [D, D] of a sample's part in its row.

  The sample is one of the pool, drawn by the density of all clients together.
  """
  answer = question.combine(responses, query)
  rows = directions_lib.sample(features.shape[0], key)
  labels = np.asarray(book.assignment)[rows]
  logs = np.zeros(len(rows))
  parts = []
  counts = None
  if answer.scores is not None:
    counts = density_lib.Counts(
      answer.scores, answer.sigma, book.assignment, book.sizes
    )
    parts.append(max(query.weight, 1) * np.eye(len(book.sizes))[labels])
  if answer.sums is not None and book.directions is not None:
    classes = len(answer.sums)
    at = density_lib.fit(
      *(features, book.directions, answer.votes, answer.sums.sum(axis=0)),
      answer.scale * classes**0.5,
      key,
      counts,
    )
    taken = chunks.take(features, rows)
    logs = at.log_at(taken)
    if at.levels is not None:
      logs = logs + at.levels[labels]
    cast = np.append(at.cast(taken), np.ones((len(rows), 1)), axis=1)
    parts.append(cast / classes**0.5)
  elif counts is not None:
    votes = scores_lib.posterior_mean(counts.scores, book.sizes, counts.sigma)
    with np.errstate(divide="ignore"):
      logs = np.log(scores_lib.density(votes, book.sizes))[labels]
  # A second round has samples of the pool in no cluster, and chooses none.
  drawn = special.softmax(np.where(labels < 0, -np.inf, logs))
  votes = np.concatenate(parts, axis=1)
  mean = drawn @ votes
  return mean, (votes.T * drawn) @ votes - np.outer(mean, mean)


def _chance(
  rows: np.ndarray,
  scale: np.ndarray,
  mean: np.ndarray,
  covariance: np.ndarray,
  key: jax.Array,
) -> float:
  """Returns the second singular value that alike clients rarely exceed.

  They have as many voters as the answers seem to have. Their rows spread by the
  noise, and by which samples they happen to have.

  Args:
    rows: float64 [n, D], the answers in units of their noise.
    scale: float64 [n], that of the noise of each answer.
    mean: float64 [D], from `_alike`.
    covariance: float64 [D, D], from `_alike`.
    key: Random key.
  """
  n, size = rows.shape
  if min(n, size) < 2:
    return np.inf
  random = start_lib.generator(key)
  # A voter adds mean / scale to its row.
  voters = np.maximum(rows @ mean / (mean @ mean) * scale, 0)
  expected = np.outer(voters / scale, mean)
  variances, axes = np.linalg.eigh(covariance)
  spread = (axes * np.sqrt(np.maximum(variances, 0))).T
  own = np.sqrt(voters)[:, None] / scale[:, None]
  second = np.empty(_SIMULATIONS)
  for i in range(_SIMULATIONS):
    noise, drawn = random.standard_normal((2, n, size))
    alike = expected + own * (drawn @ spread) + noise
    gram = alike @ alike.T if n < size else alike.T @ alike
    second[i] = np.linalg.eigvalsh(gram)[-2] ** 0.5
  return float(np.sort(second)[-1 - _EXCEEDED])


def _clusters(points: np.ndarray, groups: int, key: jax.Array) -> np.ndarray:
  """Returns the group of each point, int64 [n], by its direction from zero."""
  lengths = np.linalg.norm(points, axis=1, keepdims=True)
  unit = (points / np.maximum(lengths, 1e-9)).astype(np.float32)
  fits = [
    kmeans.fit(unit, groups, each) for each in jax.random.split(key, _STARTS)
  ]
  best = min(fits, key=lambda fit: fit.inertia[-1])
  gaps = unit[:, None] - best.centroids
  nearest = np.square(gaps).sum(axis=2).argmin(axis=1)
  # The largest group first; of equal ones that of the first answer.
  sizes = np.bincount(nearest, minlength=groups)
  first = [np.flatnonzero(nearest == g)[:1].sum() for g in range(groups)]
  order = np.lexsort((first, -sizes))
  return np.argsort(order)[nearest]

"""The messages about scores: the cloud's query and the client's response."""

import dataclasses
import math
import secrets
from typing import Annotated

import numpy as np

from ecos_jax.config import limits
from ecos_jax.messages import fields
from ecos_jax.messages import terms as terms_lib
from ecos_jax.messages import wire
from ecos_jax.messages.message import Digest
from ecos_jax.messages.message import Id
from ecos_jax.messages.message import Message
from ecos_jax.messages.message import Question

# The noise exceeds this many sigma with a probability below 1e-31.
_NOISE_SPAN = 12
_Optional = np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Query(Question):
  """What the client receives: the question, its encoder, and proposed terms.

  It asks for counts (centroids), for signed votes (directions), or for both.

  Attributes:
    centroids: [R, d] float16 or float32, finite: each sample votes for the
      nearest one. None: not asked.
    terms: What the cloud proposes; the client decides.
    directions: [p, d] float16 or float32, finite: each sample x has the
      coordinates z = directions (x - mean), and votes with the sign of z on the
      `votes` directions where z is largest. None: not asked.
    mean: [d] float32, finite; with directions.
    votes: m, from 1 to p; 0 without directions.
    classes: K: sums are asked for each class of the client's samples; 0: for
      all samples together.
    weight: What a vote for a centroid counts beside those on directions; 0 if
      only one of the two is asked.
  """

  KIND = "query"
  ARRAYS = ("centroids", "directions", "mean")

  centroids: Annotated[
    _Optional,
    fields.optional(
      fields.array(fields.FLOATS, limits.MAX_CENTROIDS, limits.MAX_DIMENSION)
    ),
  ]
  terms: terms_lib.Terms
  directions: Annotated[
    _Optional,
    fields.optional(
      fields.array(fields.FLOATS, limits.MAX_DIRECTIONS, limits.MAX_DIMENSION)
    ),
  ] = None
  mean: Annotated[
    _Optional,
    fields.optional(fields.array((np.float32,), limits.MAX_DIMENSION)),
  ] = None
  votes: Annotated[int, fields.integer(0, limits.MAX_DIRECTIONS)] = 0
  classes: Annotated[int, fields.integer(0, limits.MAX_CLASSES)] = 0
  weight: Annotated[int, fields.integer(0, limits.MAX_WEIGHT)] = 0

  def __post_init__(self):
    """Also checks that the parts of the question and its terms fit together."""
    super().__post_init__()
    if self.directions is None:
      if self.centroids is None:
        raise wire.ProtocolError("centroids or directions must be there")
      if self.mean is not None or self.votes or self.classes or self.weight:
        raise wire.ProtocolError(
          "mean, votes, classes and weight are for questions with directions"
        )
      return
    p, d = self.directions.shape
    if self.mean is None or self.mean.shape != (d,):
      raise wire.ProtocolError(f"mean must have {d} numbers, as the directions")
    fields.integer(1, p)(self.votes, "votes")
    if self.centroids is None:
      fields.integer(0, 0)(self.weight, "weight")
    else:
      fields.integer(1, limits.MAX_WEIGHT)(self.weight, "weight")
      if self.centroids.shape[1] != d:
        raise wire.ProtocolError(f"centroids must have d = {d}, as directions")
    if math.prod(self.sums) > limits.MAX_SUMS:
      raise wire.ProtocolError(
        f"classes times directions must be at most {limits.MAX_SUMS}"
      )
    terms_lib.check_votes(self.terms, self.bins, self.weight)

  @property
  def bins(self) -> int:
    """How many counts one sample changes by one: see `Statement`."""
    return self.votes + 1

  @property
  def sums(self) -> tuple[int, int]:
    """The shape of the sums in a response, (K or 1, p + 1)."""
    assert self.directions is not None
    return max(self.classes, 1), len(self.directions) + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Response(Message):
  """What the client answers: noised sums of votes, and what it states of them.

  Attributes:
    scores: [R] int64, coverage times the query's weight, plus noise; None if
      the query has no centroids.
    query_digest: Digest of the query that it answers.
    statement: The privacy statement.
    sums: [K or 1, p + 1] int64, the sums of the signed votes of each class, and
      in the last column the number of its voters, all plus noise; None if the
      query has no directions.
    client: Tells the answers of one client to this query from those of others,
      128 bits in hex; see `ledger.Ledger.client`. An answer that no ledger
      keeps has a random one.
  """

  KIND = "response"
  ARRAYS = ("scores", "sums")

  scores: Annotated[
    _Optional, fields.optional(fields.array((np.int64,), limits.MAX_CENTROIDS))
  ]
  query_digest: Digest
  statement: terms_lib.Statement
  sums: Annotated[
    _Optional,
    fields.optional(
      fields.array((np.int64,), limits.MAX_CLASSES, limits.MAX_DIRECTIONS + 1)
    ),
  ] = None
  client: Id = dataclasses.field(default_factory=lambda: secrets.token_hex(16))

  def __post_init__(self):
    """Also checks that all numbers are plausible."""
    super().__post_init__()
    if self.scores is None and self.sums is None:
      raise wire.ProtocolError("scores or sums must be there")
    span = math.ceil(_NOISE_SPAN * self.statement.scale)
    if self.scores is not None:
      most = max(self.statement.weight, 1) * limits.MAX_SAMPLES + span
      self._check("scores", self.scores, -span, most)
    if self.sums is not None:
      most = limits.MAX_SAMPLES + span
      self._check("sums", self.sums[:, :-1], -most, most)
      self._check("sums", self.sums[:, -1], -span, most)

  @property
  def terms(self) -> terms_lib.Terms:
    """The terms of the answer."""
    return self.statement

  @property
  def private(self) -> bool:
    """False if the noise came from a seed."""
    return self.statement.private

  def _check(self, field: str, sums: np.ndarray, low: int, high: int) -> None:
    if sums.size and not low <= sums.min() <= sums.max() <= high:
      raise wire.ProtocolError(
        f"{field} must be votes with noise of sigma {self.statement.sigma:g}: "
        f"in [{low}, {high}]"
      )

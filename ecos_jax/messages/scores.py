"""The messages about scores: the cloud's query and the client's response."""

import dataclasses
import math
from typing import Annotated

import numpy as np

from ecos_jax.config import limits
from ecos_jax.messages import fields
from ecos_jax.messages import terms as terms_lib
from ecos_jax.messages import wire
from ecos_jax.messages.message import Digest
from ecos_jax.messages.message import Message
from ecos_jax.messages.message import Question

# The noise exceeds this many sigma with a probability below 1e-31.
_NOISE_SPAN = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Query(Question):
  """What the client receives: the codebook, its encoder, and proposed terms.

  Attributes:
    centroids: [R, d] float16 or float32, finite.
    terms: What the cloud proposes; the client decides.
  """

  KIND = "query"
  ARRAY = "centroids"

  centroids: Annotated[
    np.ndarray,
    fields.array(fields.FLOATS, limits.MAX_CENTROIDS, limits.MAX_DIMENSION),
  ]
  terms: terms_lib.Terms


@dataclasses.dataclass(frozen=True, eq=False)
class Response(Message):
  """What the client answers: noised coverage, and what it states of the noise.

  Attributes:
    scores: [R] int64, coverage plus noise.
    query_digest: Digest of the query that it answers.
    statement: The privacy statement.
  """

  KIND = "response"
  ARRAY = "scores"

  scores: Annotated[np.ndarray, fields.array((np.int64,), limits.MAX_CENTROIDS)]
  query_digest: Digest
  statement: terms_lib.Statement

  def __post_init__(self):
    """Also checks that the scores are plausible counts.

    Raises:
      ProtocolError: A field is refused.
    """
    super().__post_init__()
    span = math.ceil(_NOISE_SPAN * self.statement.sigma)
    most = limits.MAX_SAMPLES + span
    if self.scores.min() < -span or self.scores.max() > most:
      raise wire.ProtocolError(
        f"scores must be counts with noise of sigma {self.statement.sigma:g}: "
        f"in [-{span}, {most}]"
      )

"""The cloud's side of the question: make it, read the answers, add them up."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from ecos_jax import messages
from ecos_jax.encoders import registry
from ecos_jax.messages import wire


class Combined(NamedTuple):
  """The answers of one or several clients to one query, added up.

  Attributes:
    scores: [R] int64, the sum of the noised coverages.
    sigma: Scale of the noise in them, the root of the sum of squares.
    statements: What each client states of its own answer. Each covers that
      client's samples; adding up costs nobody anything.
  """

  scores: np.ndarray
  sigma: float
  statements: tuple[messages.Statement, ...]


def make(
  centroids: np.ndarray, encoder: registry.Encoder, terms: messages.Terms
) -> messages.Query:
  """Returns the query about a codebook.

  Args:
    centroids: [R, d] float32; sent as float16 if that loses nothing.
    encoder: What made the features.
    terms: What to propose to the client.

  Raises:
    ProtocolError: The codebook exceeds the limits or is not finite.
  """
  return messages.Query(
    centroids=wire.narrowed(centroids),
    encoder_name=encoder.name,
    encoder_settings=encoder.message_settings,
    encoder_digest=encoder.digest,
    terms=terms,
  )


def read(data: bytes, query: messages.Query) -> messages.Response:
  """Returns the response in `data`, which a client may have forged.

  Raises:
    ProtocolError: It is no valid response, or one to another query.
  """
  response = messages.Response.from_bytes(data)
  if response.query_digest != query.digest:
    raise messages.ProtocolError(
      f"the response answers query {response.query_digest[:12]}, not "
      f"{query.digest[:12]}: ask the client to answer the query of this run"
    )
  if len(response.scores) != len(query.centroids):
    raise messages.ProtocolError(
      f"the response has {len(response.scores)} scores for "
      f"{len(query.centroids)} centroids"
    )
  return response


def combine(
  responses: Sequence[messages.Response], query: messages.Query
) -> Combined:
  """Returns the sum of the responses of several clients to one query.

  Args:
    responses: From `read`, one a client.
    query: What they answer.

  Raises:
    ProtocolError: There is none, or one answers another query.
  """
  if not responses:
    raise messages.ProtocolError("no response to combine: give one or more")
  if any(response.query_digest != query.digest for response in responses):
    raise messages.ProtocolError("a response answers another query")
  statements = tuple(response.statement for response in responses)
  return Combined(
    scores=np.sum([response.scores for response in responses], axis=0),
    sigma=math.hypot(*(statement.sigma for statement in statements)),
    statements=statements,
  )

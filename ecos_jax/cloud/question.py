"""The question to the client and its answers, on the cloud's side."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from ecos_jax import config
from ecos_jax import messages
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.encoders import registry
from ecos_jax.messages import wire


class Combined(NamedTuple):
  """The answers of one or several clients to one query, added up.

  Attributes:
    scores: int64 [R], the sum of the noised coverages.
    sigma: Scale of the noise in them: the root of the sum of the squares.
    statements: The privacy statement of each client, about its own samples:
      adding up the answers costs nobody anything.
  """

  scores: np.ndarray
  sigma: float
  statements: tuple[messages.Statement, ...]


def ask(
  codebook: codebook_lib.Codebook,
  encoder: registry.Encoder | str | None = None,
  *,
  sigma: float = config.Privacy.sigma,
  gamma: float = config.Privacy.gamma,
  delta: float = config.Privacy.delta,
  relation: str = config.Privacy.relation.value,
) -> bytes:
  """Returns the question about a codebook, to be sent to the client.

  It asks for the number of the client's samples that are nearest to each
  centroid. The terms are a proposal: the client decides.

  Args:
    codebook: From `codebook.fit`.
    encoder: What made the features, or its name; None for features that were
      not made by an encoder of this package.
    sigma: Scale of the noise in each count.
    gamma: Probability that a sample takes part.
    delta: The delta of (epsilon, delta).
    relation: `add_remove` or `replace_one`.

  Raises:
    EcosError: A term is out of range, the codebook is larger than a message may
      be, or there is no such encoder.
  """
  if encoder is None:
    encoder = registry.identity(codebook.centroids.shape[1])
  elif isinstance(encoder, str):
    encoder = registry.get(encoder)
  terms = messages.Terms(sigma, gamma, delta, relation)
  return make(codebook.centroids, encoder, terms).to_bytes()


def make(
  centroids: np.ndarray, encoder: registry.Encoder, terms: messages.Terms
) -> messages.Query:
  """Returns the query about centroids.

  Args:
    centroids: float32 [R, d]; sent as float16 if that loses nothing.
    encoder: What made the features.
    terms: What to propose to the client.

  Raises:
    ProtocolError: The centroids exceed the limits, are not finite, or have
      another length than the features of the encoder.
  """
  if centroids.shape[1:] != (encoder.dimension,):
    raise messages.ProtocolError(
      f"`encoder` {encoder.name} makes features with d = {encoder.dimension}, "
      f"the centroids are {list(centroids.shape)}"
    )
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

  `choose.choose` takes several answers; a run of the pipeline has one client.

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

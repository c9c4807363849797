"""The question to the client and its answers, on the cloud's side."""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.config import reading
from ecos_jax.encoders import registry
from ecos_jax.messages import wire

# Several votes of a sample are private for this relation only.
_SEVERAL = config.Relation.ADD_REMOVE.value


class Combined(NamedTuple):
  """The answers of one or several clients to one query, added up.

  Attributes:
    scores: int64 or float64 [R], the weighted sum of the noised coverages, in
      votes; None if the query has no centroids.
    sigma: Scale of the noise in them.
    statements: The privacy statement of each client, about its own samples:
      adding up the answers costs nobody anything.
    sums: int64 or float64 [K or 1, p + 1], the weighted sum of the noised sums
      of signed votes; None if the query has no directions.
    scale: Scale of the noise in these.
    votes: m, the signed votes of a sample.
  """

  scores: np.ndarray | None
  sigma: float
  statements: tuple[messages.Statement, ...] = ()
  sums: np.ndarray | None = None
  scale: float = 0.0
  votes: int = 0


def ask(
  codebook: codebook_lib.Codebook,
  encoder: registry.Encoder | str | None = None,
  *,
  question: config.Question | str = config.Codebook.question,
  votes: int = config.Codebook.votes,
  weight: int = config.Codebook.weight,
  classes: int = 0,
  sigma: float = config.Privacy.sigma,
  gamma: float = config.Privacy.gamma,
  delta: float = config.Privacy.delta,
  relation: str = config.Privacy.relation.value,
) -> bytes:
  """Returns the question about a codebook, to be sent to the client.

  It asks for the number of the client's samples that are nearest to each
  centroid, for the sums of their signed votes on the codebook's directions, or
  for both. The terms are a proposal: the client decides.

  Args:
    codebook: From `codebook.fit`; with `directions` for `signs` and `both`.
    encoder: What made the features, or its name; None for features that were
      not made by an encoder of this package.
    question: `counts`, `signs` or `both`; `auto` is `both` if the codebook has
      directions and the relation is `add_remove`, and otherwise `counts`.
    votes: For signs: m, on how many directions a sample votes; p at most.
    weight: For both: what a vote for a centroid counts beside those on
      directions.
    classes: For signs: K, to ask for the sums of each class of the client's
      samples; 0: for all together.
    sigma: Scale of the noise in each count, where a sample has one vote; see
      `messages.Terms`.
    gamma: Probability that a sample takes part.
    delta: The delta of (epsilon, delta).
    relation: `add_remove` or `replace_one`; signs need `add_remove`.

  Raises:
    EcosError: A term is out of range, the codebook is larger than a message may
      be or has no directions, or there is no such encoder.
  """
  if encoder is None:
    encoder = registry.identity(codebook.centroids.shape[1])
  elif isinstance(encoder, str):
    encoder = registry.get(encoder)
  terms = messages.Terms(sigma, gamma, delta, relation)
  options = reading.from_arguments(
    config.Codebook, question=question, votes=votes, weight=weight
  )
  return make(codebook, encoder, terms, options, classes).to_bytes()


def make(
  codebook: codebook_lib.Codebook,
  encoder: registry.Encoder,
  terms: messages.Terms,
  options: config.Codebook,
  classes: int = 0,
) -> messages.Query:
  """Returns the query about a codebook.

  Args:
    codebook: Its numbers are sent as float16 if that loses nothing.
    encoder: What made the features.
    terms: What to propose to the client.
    options: `question`, `votes` and `weight`.
    classes: As in `ask`.

  Raises:
    EcosError: The codebook exceeds the limits, is not finite, has no directions
      to ask about, or has another length than the features of the encoder;
      or classes are given and directions are not asked about.
  """
  centroids, axes = codebook.centroids, codebook.directions
  if centroids.shape[1:] != (encoder.dimension,):
    raise messages.ProtocolError(
      f"`encoder` {encoder.name} makes features with d = {encoder.dimension}, "
      f"the centroids are {list(centroids.shape)}"
    )
  asked = options.question
  if asked is config.Question.AUTO:
    signs = axes is not None and terms.relation == _SEVERAL
    asked = config.Question.BOTH if signs else config.Question.COUNTS
  counts = asked is not config.Question.SIGNS
  fields: dict[str, Any] = {}
  if classes and asked is config.Question.COUNTS:
    raise errors.EcosError(
      "`classes` is for signed votes, and this question is about counts alone: "
      "give `question`=both, a codebook with directions and `relation` "
      "add_remove, or drop it"
    )
  if asked is not config.Question.COUNTS:
    if axes is None:
      raise errors.EcosError(
        f"`codebook` has no directions for `question`={asked.value}: fit it "
        "with `directions`"
      )
    fields = {
      "directions": wire.narrowed(axes.axes),
      "mean": axes.mean,
      "votes": min(options.votes, len(axes.axes)),
      "weight": options.weight if counts else 0,
      "classes": classes,
    }
  return messages.Query(
    centroids=wire.narrowed(centroids) if counts else None,
    encoder_name=encoder.name,
    encoder_settings=encoder.message_settings,
    encoder_digest=encoder.digest,
    terms=terms,
    **fields,
  )


def is_about(query: messages.Query, codebook: codebook_lib.Codebook) -> bool:
  """Returns whether a query asks about the arrays of a codebook."""
  axes, mean = codebook.directions or (None, None)
  pairs = (
    (query.centroids, codebook.centroids),
    (query.directions, axes),
    (query.mean, mean),
  )
  return all(
    sent is None or (own is not None and np.array_equal(sent, own))
    for sent, own in pairs
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
  wanted = None if query.centroids is None else query.centroids.shape[:1]
  got = None if response.scores is None else response.scores.shape
  if got != wanted:
    raise messages.ProtocolError(
      f"the response has {got} scores, the query asks for {wanted}"
    )
  wanted = None if query.directions is None else query.sums
  got = None if response.sums is None else response.sums.shape
  if got != wanted:
    raise messages.ProtocolError(
      f"the response has {got} sums, the query asks for {wanted}"
    )
  said = response.statement
  if (said.bins, said.weight) != (query.bins, query.weight):
    raise messages.ProtocolError(
      "the response states its privacy for another number of votes"
    )
  return response


def weights(statements: Sequence[messages.Statement]) -> np.ndarray:
  """Returns what each answer counts in the sum, float64 [n], 1 on average.

  All count 1 if the terms are the same. Otherwise an answer counts in
  proportion to gamma / scale^2: if the clients are alike, the votes of client i
  are gamma_i v plus noise of scale_i, and the sum with these weights is, up to
  a factor, the estimate of v with the least variance (Aitken 1936). So much
  noise of one client never drowns the answers of the others.

  Args:
    statements: The terms of each answer.
  """
  worth = np.array([said.gamma / said.scale**2 for said in statements])
  # Exactly 1 if all are equal.
  worth /= worth[0]
  return worth / worth.mean()


def combine(
  responses: Sequence[messages.Response], query: messages.Query
) -> Combined:
  """Returns the weighted sum of the responses of several clients to one query.

  With w_i from `weights`, the noise of the sum has the scale
  sqrt(sum w_i^2 scale_i^2).

  Args:
    responses: From `read`, one a client.
    query: What they answer.

  Raises:
    ProtocolError: There is none, one answers another query, or two are of one
      client.
  """
  if not responses:
    raise messages.ProtocolError("no response to combine: give one or more")
  if any(response.query_digest != query.digest for response in responses):
    raise messages.ProtocolError("a response answers another query")
  if len({response.client for response in responses}) < len(responses):
    raise messages.ProtocolError(
      "two responses are of one client: give one of each"
    )
  statements = tuple(response.statement for response in responses)
  counts = weights(statements)
  scale = math.hypot(*(counts * [said.scale for said in statements]))
  scores = _added([response.scores for response in responses], counts)
  weight = max(query.weight, 1)
  if scores is not None and weight > 1:
    scores = scores / weight
  return Combined(
    scores=scores,
    sigma=scale / weight,
    statements=statements,
    sums=_added([response.sums for response in responses], counts),
    scale=scale,
    votes=query.votes,
  )


def _added(
  parts: Sequence[np.ndarray | None], counts: np.ndarray
) -> np.ndarray | None:
  """Returns the weighted sum; of integers if all count 1."""
  present = [part for part in parts if part is not None]
  if not present:
    return None
  if (counts == 1).all():
    return np.sum(present, axis=0)
  return np.tensordot(counts, np.asarray(present, np.float64), axes=1)

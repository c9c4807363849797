"""The messages about labels: the cloud's request and the client's response."""

import dataclasses
from typing import Annotated

import numpy as np

from ecos_jax.config import limits
from ecos_jax.messages import fields
from ecos_jax.messages import terms as terms_lib
from ecos_jax.messages import wire
from ecos_jax.messages.message import Digest
from ecos_jax.messages.message import Message
from ecos_jax.messages.message import Question

LABEL_MECHANISM = "poisson_private_knn"


@dataclasses.dataclass(frozen=True, eq=False)
class LabelRequest(Question):
  """The proxy's features, for the client to label.

  Attributes:
    features: [m, d] float16 or float32, finite.
    terms: What the cloud proposes; the client decides.
  """

  KIND = "label_request"
  ARRAYS = ("features",)

  features: Annotated[
    np.ndarray,
    fields.array(fields.FLOATS, limits.MAX_LABELS, limits.MAX_DIMENSION),
  ]
  terms: terms_lib.LabelTerms

  @property
  def classes(self) -> int:
    """Number of classes."""
    return self.terms.classes

  def __post_init__(self):
    """Also bounds the number of counts."""
    super().__post_init__()
    if len(self.features) * self.classes > limits.MAX_LABEL_COUNTS:
      raise wire.ProtocolError(
        f"features: {len(self.features):,} requests for {self.classes:,} "
        f"classes are more than {limits.MAX_LABEL_COUNTS:,} counts: ask for "
        "fewer"
      )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelResponse(Message):
  """The client's noisy labels for a request.

  Attributes:
    labels: [m] int32, -1 where the client abstains.
    request_digest: Digest of the request that it answers.
    terms: The terms that were used.
    answers: How many labels the client's budget allowed. It was decided before
      the data were read; epsilon covers all of them, given or not.
    considered: How many requests, in order, were considered before the answers
      were used up.
    epsilon: What it costs to screen all requests and give that many answers.
    private: False if the noise came from a seed.
    mechanism: What was drawn, `LABEL_MECHANISM`.
  """

  KIND = "label_response"
  ARRAYS = ("labels",)

  labels: Annotated[np.ndarray, fields.array((np.int32,), limits.MAX_LABELS)]
  request_digest: Digest
  terms: terms_lib.LabelTerms
  answers: Annotated[int, fields.integer(1, limits.MAX_LABELS)]
  considered: Annotated[int, fields.integer(1, limits.MAX_LABELS)]
  epsilon: terms_lib.Epsilon
  private: terms_lib.Flag
  mechanism: Annotated[str, fields.constant(LABEL_MECHANISM)] = LABEL_MECHANISM

  def __post_init__(self):
    """Also checks that the labels fit the counts."""
    super().__post_init__()
    m, classes = len(self.labels), self.terms.classes
    if self.labels.min() < -1 or self.labels.max() >= classes:
      raise wire.ProtocolError(f"labels must be in [-1, {classes - 1}]")
    fields.integer(1, m)(self.answers, "answers")
    given = np.flatnonzero(self.labels >= 0)
    if len(given) > self.answers:
      raise wire.ProtocolError(
        f"labels must be at most {self.answers}, as answers says, and -1"
      )
    # The client stops after its last answer, and not before.
    stop = given[-1] + 1 if len(given) == self.answers else m
    if self.considered != stop:
      raise wire.ProtocolError("considered does not fit labels and answers")

"""The messages between cloud and client: versioned, bounded, validated.

Four messages cross the trust boundary: `Query` and `Response`, and for client
labelling `LabelRequest` and `LabelResponse`. On the wire each is one
safetensors file: a JSON header and one array. Nothing in it can be executed,
and any language can read it.

Neither side trusts the other. A message has exactly one valid encoding: what
`from_bytes` accepts, `to_bytes` gives back byte for byte, so the sha256 of the
bytes identifies the content, and duplicate fields, hidden bytes and lengths
that lie are refused together. All sizes are checked before anything of that
size is allocated, and every refusal is a `ProtocolError` that names the field.
Names are plain ASCII, since they are printed on the client's terminal.

    >>> terms = Terms(sigma=10, gamma=0.8, delta=1e-5, relation="add_remove")
    >>> centroids = np.zeros((100, 72), np.float32)
    >>> query = Query(centroids, "hog", {"version": 1}, 64 * "0", terms)
    >>> message = query.to_bytes()
    >>> Query.from_bytes(message).centroids.shape
    (100, 72)
    >>> Query.from_bytes(message[:6])
    Traceback (most recent call last):
      ...
    ecos_jax.messages.wire.ProtocolError: the query is cut off
"""

import dataclasses
import functools
import math
import re

import numpy as np

from ecos_jax import config
from ecos_jax.messages import wire

# 100 times the largest codebook of the paper's study, rounded up.
MAX_CENTROIDS = 100_000
# Features of the widest public encoders have a few thousand numbers.
MAX_DIMENSION = 8192
MAX_LABELS = 10_000_000
MAX_CLASSES = 100_000
MAX_SETTINGS = 64
# More samples than any client has; bounds the counts that are plausible.
MAX_SAMPLES = 2**40
# The accounting is exact in double precision within these limits. A gamma of
# 2^-12 or more is a multiple of 2^-64, so that it can be drawn exactly.
MIN_SIGMA, MAX_SIGMA = 0.25, 16384.0
MIN_GAMMA = 2.0**-12
MIN_DELTA, MAX_DELTA = 1e-9, 0.1
# The noise exceeds so many sigma with a probability below 1e-31.
NOISE_SPAN = 12
MECHANISM = "poisson_discrete_gaussian"
LABEL_MECHANISM = "poisson_private_knn"
_FLOATS = (np.float16, np.float32)

ProtocolError = wire.ProtocolError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
_TEXT = re.compile(r"[ -~]{0,256}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def _relation(value: object) -> str:
  try:
    return config.Relation(value).value
  except ValueError as error:
    names = ", ".join(relation.value for relation in config.Relation)
    raise ProtocolError(f"relation must be one of {names}") from error


@dataclasses.dataclass(frozen=True)
class Terms:
  """The privacy terms of scores.

  Attributes:
    sigma: Scale of the discrete Gaussian noise, in votes.
    gamma: Probability that a sample takes part, independently of the others.
    delta: The delta of (epsilon, delta).
    relation: `add_remove` or `replace_one`; a `config.Relation` is accepted.
  """

  sigma: float
  gamma: float
  delta: float
  relation: str

  def __post_init__(self):
    """Checks the ranges."""
    wire.normalise(
      self,
      sigma=wire.number(self.sigma, "sigma", MIN_SIGMA, MAX_SIGMA),
      gamma=wire.number(self.gamma, "gamma", MIN_GAMMA, 1.0),
      delta=wire.number(self.delta, "delta", MIN_DELTA, MAX_DELTA),
      relation=_relation(self.relation),
    )
    # Else showing gamma of the samples as they are would count as private.
    if self.delta >= self.gamma:
      raise ProtocolError("gamma must be above delta: it would allow anything")


@dataclasses.dataclass(frozen=True)
class Statement:
  """What the client states about the scores that it released.

  Attributes:
    mechanism: What was drawn, `MECHANISM`.
    sigma: As in `Terms`.
    gamma: As in `Terms`.
    delta: As in `Terms`.
    relation: As in `Terms`.
    epsilon: The epsilon of the noise, for delta and the relation.
    private: False if the noise came from a seed: then epsilon is worth nothing.
  """

  mechanism: str
  sigma: float
  gamma: float
  delta: float
  relation: str
  epsilon: float
  private: bool

  def __post_init__(self):
    """Checks the ranges."""
    terms = Terms(self.sigma, self.gamma, self.delta, self.relation)
    wire.normalise(self, **dataclasses.asdict(terms))
    wire.normalise(self, epsilon=wire.number(self.epsilon, "epsilon", 0.0, 1e6))
    wire.boolean(self.private, "private")
    if self.mechanism != MECHANISM:
      raise ProtocolError(f"mechanism must be {MECHANISM}")


@dataclasses.dataclass(frozen=True)
class LabelTerms:
  """The terms of Private-kNN labelling (Zhu et al., CVPR 2020).

  Attributes:
    classes: Number of classes.
    neighbours: k, the private samples that vote on one request.
    sigma_screen: Noise on the largest number of votes, for every request.
    sigma_vote: Noise on the votes of the requests that are answered.
    threshold: The screened number of votes from which a request is answered.
    gamma: As in `Terms`; drawn anew for every request, and again for its votes.
    delta: As in `Terms`.
    relation: As in `Terms`.
  """

  classes: int
  neighbours: int
  sigma_screen: float
  sigma_vote: float
  threshold: float
  gamma: float
  delta: float
  relation: str

  def __post_init__(self):
    """Checks the ranges."""
    sigmas = {
      name: wire.number(getattr(self, name), name, MIN_SIGMA, MAX_SIGMA)
      for name in ("sigma_screen", "sigma_vote")
    }
    terms = Terms(sigmas["sigma_vote"], self.gamma, self.delta, self.relation)
    wire.normalise(
      self,
      classes=wire.integer(self.classes, "classes", 2, MAX_CLASSES),
      neighbours=wire.integer(self.neighbours, "neighbours", 1, MAX_SAMPLES),
      **sigmas,
      threshold=wire.number(self.threshold, "threshold", -1e12, 1e12),
      gamma=terms.gamma,
      delta=terms.delta,
      relation=terms.relation,
    )


def _check_encoder(message: "Query | LabelRequest") -> None:
  wire.match(message.encoder_name, "encoder_name", _NAME)
  wire.match(message.encoder_digest, "encoder_digest", _DIGEST)
  settings = message.encoder_settings
  if not isinstance(settings, dict) or len(settings) > MAX_SETTINGS:
    raise ProtocolError(
      f"encoder_settings must be at most {MAX_SETTINGS} named values"
    )
  for name, value in settings.items():
    wire.match(name, "a name in encoder_settings", _NAME)
    field = f"encoder_settings.{name}"
    if isinstance(value, str):
      wire.match(value, field, _TEXT)
    elif isinstance(value, int):
      wire.integer(value, field, -(2**53), 2**53)
    else:
      wire.number(value, field, -1e300, 1e300)
  wire.normalise(message, encoder_settings=dict(settings))


@dataclasses.dataclass(frozen=True, eq=False)
class Query:
  """What the client receives: the codebook, its encoder, and proposed terms.

  Attributes:
    centroids: [R, d] float16 or float32, finite.
    encoder_name: Name of the public encoder.
    encoder_settings: Its settings.
    encoder_digest: sha256 (hex) of its name, settings and weights.
    terms: What the cloud proposes; the client decides.
  """

  centroids: np.ndarray
  encoder_name: str
  encoder_settings: dict[str, int | float | str]
  encoder_digest: str
  terms: Terms

  def __post_init__(self):
    """Checks all fields."""
    limits = (MAX_CENTROIDS, MAX_DIMENSION)
    wire.normalise(
      self,
      centroids=wire.array(self.centroids, "centroids", _FLOATS, limits),
    )
    _check_encoder(self)

  def to_bytes(self) -> bytes:
    """Returns the message as a safetensors file."""
    fields = {
      "encoder_name": self.encoder_name,
      "encoder_settings": self.encoder_settings,
      "encoder_digest": self.encoder_digest,
      **dataclasses.asdict(self.terms),
    }
    return wire.pack("query", fields, "centroids", self.centroids)

  @classmethod
  def from_bytes(cls, data: bytes) -> "Query":
    """Returns the query in `data`.

    Raises:
      ProtocolError: `data` is anything but one valid query.
    """
    fields, centroids = wire.unpack(data, "query", "centroids")
    terms = wire.take(fields, Terms)
    query = wire.take(fields, cls, centroids=centroids, terms=terms)
    wire.check_canonical(query, fields, data)
    return query

  @functools.cached_property
  def digest(self) -> str:
    """Returns the sha256 (hex) of the bytes."""
    return wire.digest(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Response:
  """What the client answers: noised coverage, and what it states of the noise.

  Attributes:
    scores: [R] int64, coverage plus noise.
    query_digest: Of the query that it answers.
    statement: The privacy statement.
  """

  scores: np.ndarray
  query_digest: str
  statement: Statement

  def __post_init__(self):
    """Checks all fields."""
    wire.normalise(
      self,
      scores=wire.array(self.scores, "scores", (np.int64,), (MAX_CENTROIDS,)),
    )
    wire.match(self.query_digest, "query_digest", _DIGEST)
    span = math.ceil(NOISE_SPAN * self.statement.sigma)
    if self.scores.min() < -span or self.scores.max() > MAX_SAMPLES + span:
      raise ProtocolError(
        f"scores must be counts with noise of sigma {self.statement.sigma:g}: "
        f"in [-{span}, {MAX_SAMPLES + span}]"
      )

  def to_bytes(self) -> bytes:
    """Returns the message as a safetensors file."""
    fields = {
      "query_digest": self.query_digest,
      **dataclasses.asdict(self.statement),
    }
    return wire.pack("response", fields, "scores", self.scores)

  @classmethod
  def from_bytes(cls, data: bytes) -> "Response":
    """Returns the response in `data`.

    Raises:
      ProtocolError: `data` is anything but one valid response.
    """
    fields, scores = wire.unpack(data, "response", "scores")
    statement = wire.take(fields, Statement)
    response = wire.take(fields, cls, scores=scores, statement=statement)
    wire.check_canonical(response, fields, data)
    return response


@dataclasses.dataclass(frozen=True, eq=False)
class LabelRequest:
  """The proxy's features, for the client to label.

  Attributes:
    features: [m, d] float16 or float32, finite.
    encoder_name: As in `Query`.
    encoder_settings: As in `Query`.
    encoder_digest: As in `Query`.
    terms: What the cloud proposes; the client decides.
  """

  features: np.ndarray
  encoder_name: str
  encoder_settings: dict[str, int | float | str]
  encoder_digest: str
  terms: LabelTerms

  def __post_init__(self):
    """Checks all fields."""
    limits = (MAX_LABELS, MAX_DIMENSION)
    wire.normalise(
      self, features=wire.array(self.features, "features", _FLOATS, limits)
    )
    _check_encoder(self)

  def to_bytes(self) -> bytes:
    """Returns the message as a safetensors file."""
    fields = {
      "encoder_name": self.encoder_name,
      "encoder_settings": self.encoder_settings,
      "encoder_digest": self.encoder_digest,
      **dataclasses.asdict(self.terms),
    }
    return wire.pack("label_request", fields, "features", self.features)

  @classmethod
  def from_bytes(cls, data: bytes) -> "LabelRequest":
    """Returns the request in `data`.

    Raises:
      ProtocolError: `data` is anything but one valid request.
    """
    fields, features = wire.unpack(data, "label_request", "features")
    terms = wire.take(fields, LabelTerms)
    request = wire.take(fields, cls, features=features, terms=terms)
    wire.check_canonical(request, fields, data)
    return request

  @functools.cached_property
  def digest(self) -> str:
    """Returns the sha256 (hex) of the bytes."""
    return wire.digest(self)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelResponse:
  """The client's noisy labels for a request.

  Attributes:
    labels: [m] int32, -1 where the client abstains.
    request_digest: Of the request that it answers.
    terms: The terms that were used.
    mechanism: What was drawn, `LABEL_MECHANISM`.
    answers: How many labels the client's budget allowed; decided before the
      data were read, and paid for whether they were given or not.
    considered: How many requests, from the first on, were considered before
      the answers were used up.
    epsilon: Of screening all requests and giving that many answers.
    private: False if the noise came from a seed.
  """

  labels: np.ndarray
  request_digest: str
  terms: LabelTerms
  mechanism: str
  answers: int
  considered: int
  epsilon: float
  private: bool

  def __post_init__(self):
    """Checks all fields."""
    wire.normalise(
      self, labels=wire.array(self.labels, "labels", (np.int32,), (MAX_LABELS,))
    )
    if self.labels.min() < -1 or self.labels.max() >= self.terms.classes:
      raise ProtocolError(f"labels must be in [-1, {self.terms.classes - 1}]")
    m = len(self.labels)
    wire.normalise(
      self,
      answers=wire.integer(self.answers, "answers", 1, m),
      considered=wire.integer(self.considered, "considered", 1, m),
    )
    given = np.flatnonzero(self.labels >= 0)
    if len(given) > self.answers:
      raise ProtocolError(
        f"labels must be at most {self.answers}, as answers says, and -1"
      )
    # The client stops after its last answer, and not before.
    stop = given[-1] + 1 if len(given) == self.answers else m
    if self.considered != stop:
      raise ProtocolError("considered does not fit labels and answers")
    wire.match(self.request_digest, "request_digest", _DIGEST)
    wire.normalise(self, epsilon=wire.number(self.epsilon, "epsilon", 0.0, 1e6))
    wire.boolean(self.private, "private")
    if self.mechanism != LABEL_MECHANISM:
      raise ProtocolError(f"mechanism must be {LABEL_MECHANISM}")

  def to_bytes(self) -> bytes:
    """Returns the message as a safetensors file."""
    fields = {
      "request_digest": self.request_digest,
      "mechanism": self.mechanism,
      "answers": self.answers,
      "considered": self.considered,
      "epsilon": self.epsilon,
      "private": self.private,
      **dataclasses.asdict(self.terms),
    }
    return wire.pack("label_response", fields, "labels", self.labels)

  @classmethod
  def from_bytes(cls, data: bytes) -> "LabelResponse":
    """Returns the response in `data`.

    Raises:
      ProtocolError: `data` is anything but one valid response.
    """
    fields, labels = wire.unpack(data, "label_response", "labels")
    terms = wire.take(fields, LabelTerms)
    response = wire.take(fields, cls, labels=labels, terms=terms)
    wire.check_canonical(response, fields, data)
    return response

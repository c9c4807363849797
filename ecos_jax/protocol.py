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
    ecos_jax.protocol.ProtocolError: the query is cut off
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import json
import math
import os
from pathlib import Path
import re
import struct
from typing import Any

import numpy as np

from ecos_jax import config
from ecos_jax import errors

VERSION = 1
# 100 times the largest codebook of the paper's study, rounded up.
MAX_CENTROIDS = 100_000
# Features of the widest public encoders have a few thousand numbers.
MAX_DIMENSION = 8192
MAX_LABELS = 10_000_000
MAX_CLASSES = 100_000
# The client holds a message in memory a few times: 64 Mi numbers of 4 bytes.
MAX_BYTES = 2**28
MAX_HEADER_BYTES = 2**16
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

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
_TEXT = re.compile(r"[ -~]{0,256}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ProtocolError(errors.EcosError):
  """A message, or a term in one, that is refused; says which field and why."""


def _number(value: object, field: str, low: float, high: float) -> float:
  """Returns `value` as a float in [low, high]."""
  if isinstance(value, bool) or not isinstance(
    value, int | float | np.integer | np.floating
  ):
    raise ProtocolError(f"{field} must be a number")
  # Compared before the conversion, which a huge integer would overflow.
  if not low <= value <= high:
    raise ProtocolError(f"{field} must be in [{low:g}, {high:g}]")
  return float(value)


def _integer(value: object, field: str, low: int, high: int) -> int:
  if isinstance(value, bool) or not isinstance(value, int | np.integer):
    raise ProtocolError(f"{field} must be an integer")
  if not low <= value <= high:
    raise ProtocolError(f"{field} must be in [{low}, {high}]")
  return int(value)


def _match(value: object, field: str, pattern: re.Pattern[str]) -> str:
  if not isinstance(value, str) or not pattern.fullmatch(value):
    raise ProtocolError(f"{field} must be text that matches {pattern.pattern}")
  return value


def _relation(value: object) -> str:
  try:
    return config.Relation(value).value
  except ValueError as error:
    names = ", ".join(relation.value for relation in config.Relation)
    raise ProtocolError(f"relation must be one of {names}") from error


def _boolean(value: object, field: str) -> bool:
  if not isinstance(value, bool):
    raise ProtocolError(f"{field} must be true or false")
  return value


def _array(value: object, field: str, dtype: type, limits: tuple) -> np.ndarray:
  """Returns a read-only copy of an array with 1 to `limits` of each axis."""
  if not isinstance(value, np.ndarray) or value.dtype != dtype:
    raise ProtocolError(f"{field} must be a {np.dtype(dtype)} array")
  if value.ndim != len(limits) or not all(
    1 <= size <= limit for size, limit in zip(value.shape, limits, strict=True)
  ):
    raise ProtocolError(
      f"{field} must have {len(limits)} axes of 1 to {limits}, got "
      f"{list(value.shape)}"
    )
  if value.nbytes + MAX_HEADER_BYTES > MAX_BYTES:
    raise ProtocolError(f"{field} must be smaller than {MAX_BYTES} bytes")
  if value.dtype.kind == "f" and not np.isfinite(value).all():
    raise ProtocolError(f"{field} must be finite: it holds NaN or infinity")
  value = np.array(value, order="C")
  value.flags.writeable = False
  return value


def _set(message: object, **fields: object) -> None:
  """Sets fields of a frozen dataclass to their normal form."""
  for name, value in fields.items():
    object.__setattr__(message, name, value)


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
    _set(
      self,
      sigma=_number(self.sigma, "sigma", MIN_SIGMA, MAX_SIGMA),
      gamma=_number(self.gamma, "gamma", MIN_GAMMA, 1.0),
      delta=_number(self.delta, "delta", MIN_DELTA, MAX_DELTA),
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
    _set(self, **dataclasses.asdict(terms))
    _set(self, epsilon=_number(self.epsilon, "epsilon", 0.0, 1e6))
    _boolean(self.private, "private")
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
      name: _number(getattr(self, name), name, MIN_SIGMA, MAX_SIGMA)
      for name in ("sigma_screen", "sigma_vote")
    }
    terms = Terms(sigmas["sigma_vote"], self.gamma, self.delta, self.relation)
    _set(
      self,
      classes=_integer(self.classes, "classes", 2, MAX_CLASSES),
      neighbours=_integer(self.neighbours, "neighbours", 1, MAX_SAMPLES),
      **sigmas,
      threshold=_number(self.threshold, "threshold", -1e12, 1e12),
      gamma=terms.gamma,
      delta=terms.delta,
      relation=terms.relation,
    )


def _check_encoder(message: "Query | LabelRequest") -> None:
  _match(message.encoder_name, "encoder_name", _NAME)
  _match(message.encoder_digest, "encoder_digest", _DIGEST)
  settings = message.encoder_settings
  if not isinstance(settings, dict) or len(settings) > MAX_SETTINGS:
    raise ProtocolError(
      f"encoder_settings must be at most {MAX_SETTINGS} named values"
    )
  for name, value in settings.items():
    _match(name, "a name in encoder_settings", _NAME)
    field = f"encoder_settings.{name}"
    if isinstance(value, str):
      _match(value, field, _TEXT)
    elif isinstance(value, int):
      _integer(value, field, -(2**53), 2**53)
    else:
      _number(value, field, -1e300, 1e300)
  _set(message, encoder_settings=dict(settings))


def _refuse_constant(text: str) -> None:
  raise ValueError(f"{text} is no number of JSON")


def _parse_json(data: bytes | str, field: str) -> Any:
  try:
    return json.loads(data, parse_constant=_refuse_constant)
  # RecursionError: brackets nested thousands deep.
  except (ValueError, RecursionError) as error:
    raise ProtocolError(f"{field} is not valid JSON") from error


def _dump_json(value: object) -> str:
  return json.dumps(
    value, sort_keys=True, separators=(",", ":"), allow_nan=False
  )


_DTYPES = {"F32": np.float32, "I32": np.int32, "I64": np.int64}
_DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def _pack(kind: str, fields: Mapping, name: str, array: np.ndarray) -> bytes:
  """Returns the one safetensors encoding of a message."""
  fields = {"kind": kind, "version": VERSION, **fields}
  header = _dump_json(
    {
      "__metadata__": {"ecos_jax": _dump_json(fields)},
      name: {
        "dtype": _DTYPE_NAMES[array.dtype],
        "shape": array.shape,
        "data_offsets": [0, array.nbytes],
      },
    }
  ).encode()
  # Padded, so that the array is aligned in a file that is mapped.
  header += b" " * (-len(header) % 8)
  if len(header) > MAX_HEADER_BYTES:
    raise ProtocolError(f"the header exceeds {MAX_HEADER_BYTES} bytes")
  return struct.pack("<Q", len(header)) + header + array.tobytes()


def _unpack(data: bytes, kind: str, name: str) -> tuple[dict, np.ndarray]:
  """Returns the fields and the array of a message that is still to be checked.

  Only what is needed to reach them is checked here. The message made of them
  checks the values, and `_same` that nothing else was in the bytes.
  """
  if len(data) > MAX_BYTES:
    raise ProtocolError(f"the {kind} exceeds {MAX_BYTES} bytes")
  if len(data) < 8:
    raise ProtocolError(f"the {kind} is cut off")
  (length,) = struct.unpack_from("<Q", data)
  if length > min(MAX_HEADER_BYTES, len(data) - 8):
    raise ProtocolError(f"the {kind} is cut off, or its header length lies")
  header = _parse_json(data[8 : 8 + length], "the header")
  try:
    text = header["__metadata__"]["ecos_jax"]
    dtype, shape = header[name]["dtype"], header[name]["shape"]
  except (KeyError, TypeError) as error:
    raise ProtocolError(
      f"this is no {kind} of ecos_jax: the header lacks ecos_jax or {name}"
    ) from error
  fields = _parse_json(text, "the metadata") if isinstance(text, str) else None
  if not isinstance(fields, dict) or fields.pop("kind", None) != kind:
    raise ProtocolError(f"kind must be {kind}: this is another message")
  version = fields.pop("version", None)
  if version != VERSION:
    raise ProtocolError(
      f"version must be {VERSION}: cloud and client need ecos_jax of the same "
      "protocol version"
    )
  if not isinstance(dtype, str) or dtype not in _DTYPES:
    raise ProtocolError(f"{name} has an unknown dtype")
  if not isinstance(shape, list) or len(shape) > 2:
    raise ProtocolError(f"{name} has an unknown shape")
  shape = [_integer(n, f"the shape of {name}", 1, MAX_BYTES) for n in shape]
  body = memoryview(data)[8 + length :]
  if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != len(body):
    raise ProtocolError(f"{name} does not have the length that its shape says")
  return fields, np.frombuffer(body, _DTYPES[dtype]).reshape(shape)


def _take(fields: dict, cls: type, **given: object) -> Any:
  """Returns a `cls` of `given` and of its fields taken out of `fields`."""
  names = {field.name for field in dataclasses.fields(cls)} - set(given)
  missing = names - set(fields)
  if missing:
    raise ProtocolError(f"missing field {', '.join(sorted(missing))}")
  return cls(**given, **{name: fields.pop(name) for name in names})


def _same(message: Any, fields: dict, data: bytes) -> None:
  """Refuses bytes that hold anything beside the message."""
  if fields:
    raise ProtocolError(f"{len(fields)} unknown fields")
  if message.to_bytes() != data:
    raise ProtocolError(
      "the bytes are not the canonical encoding of their content: duplicate "
      "or hidden fields"
    )


def _digest(message: Any) -> str:
  return hashlib.sha256(message.to_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Query:
  """What the client receives: the codebook, its encoder, and proposed terms.

  Attributes:
    centroids: [R, d] float32, finite.
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
    _set(
      self, centroids=_array(self.centroids, "centroids", np.float32, limits)
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
    return _pack("query", fields, "centroids", self.centroids)

  @classmethod
  def from_bytes(cls, data: bytes) -> "Query":
    """Returns the query in `data`.

    Raises:
      ProtocolError: `data` is anything but one valid query.
    """
    fields, centroids = _unpack(data, "query", "centroids")
    terms = _take(fields, Terms)
    query = _take(fields, cls, centroids=centroids, terms=terms)
    _same(query, fields, data)
    return query

  @functools.cached_property
  def digest(self) -> str:
    """Returns the sha256 (hex) of the bytes."""
    return _digest(self)


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
    _set(self, scores=_array(self.scores, "scores", np.int64, (MAX_CENTROIDS,)))
    _match(self.query_digest, "query_digest", _DIGEST)
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
    return _pack("response", fields, "scores", self.scores)

  @classmethod
  def from_bytes(cls, data: bytes) -> "Response":
    """Returns the response in `data`.

    Raises:
      ProtocolError: `data` is anything but one valid response.
    """
    fields, scores = _unpack(data, "response", "scores")
    statement = _take(fields, Statement)
    response = _take(fields, cls, scores=scores, statement=statement)
    _same(response, fields, data)
    return response


@dataclasses.dataclass(frozen=True, eq=False)
class LabelRequest:
  """The proxy's features, for the client to label.

  Attributes:
    features: [m, d] float32, finite.
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
    _set(self, features=_array(self.features, "features", np.float32, limits))
    _check_encoder(self)

  def to_bytes(self) -> bytes:
    """Returns the message as a safetensors file."""
    fields = {
      "encoder_name": self.encoder_name,
      "encoder_settings": self.encoder_settings,
      "encoder_digest": self.encoder_digest,
      **dataclasses.asdict(self.terms),
    }
    return _pack("label_request", fields, "features", self.features)

  @classmethod
  def from_bytes(cls, data: bytes) -> "LabelRequest":
    """Returns the request in `data`.

    Raises:
      ProtocolError: `data` is anything but one valid request.
    """
    fields, features = _unpack(data, "label_request", "features")
    terms = _take(fields, LabelTerms)
    request = _take(fields, cls, features=features, terms=terms)
    _same(request, fields, data)
    return request

  @functools.cached_property
  def digest(self) -> str:
    """Returns the sha256 (hex) of the bytes."""
    return _digest(self)


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
    _set(self, labels=_array(self.labels, "labels", np.int32, (MAX_LABELS,)))
    if self.labels.min() < -1 or self.labels.max() >= self.terms.classes:
      raise ProtocolError(f"labels must be in [-1, {self.terms.classes - 1}]")
    m = len(self.labels)
    _set(
      self,
      answers=_integer(self.answers, "answers", 1, m),
      considered=_integer(self.considered, "considered", 1, m),
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
    _match(self.request_digest, "request_digest", _DIGEST)
    _set(self, epsilon=_number(self.epsilon, "epsilon", 0.0, 1e6))
    _boolean(self.private, "private")
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
    return _pack("label_response", fields, "labels", self.labels)

  @classmethod
  def from_bytes(cls, data: bytes) -> "LabelResponse":
    """Returns the response in `data`.

    Raises:
      ProtocolError: `data` is anything but one valid response.
    """
    fields, labels = _unpack(data, "label_response", "labels")
    terms = _take(fields, LabelTerms)
    response = _take(fields, cls, labels=labels, terms=terms)
    _same(response, fields, data)
    return response


def read_file(path: Path) -> bytes:
  """Returns the bytes of a message file, without reading more than allowed.

  Raises:
    ProtocolError: There is no such file, or it is too large for a message.
  """
  try:
    with path.open("rb") as file:
      data = file.read(MAX_BYTES + 1)
  except (FileNotFoundError, IsADirectoryError) as error:
    raise ProtocolError(f"{path} is not a file") from error
  if len(data) > MAX_BYTES:
    raise ProtocolError(f"{path} exceeds {MAX_BYTES} bytes: no message is so")
  return data


def write_file(path: Path, data: bytes) -> None:
  """Writes a message file: the whole of it or nothing."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with temporary.open("wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise

"""The lines of a ledger: one guarantee, then the answers, in a chain.

Each line is the sha256 of a text, and the text: JSON. The first line's is a
`Guarantee`, each other one's an `Entry` and the sha256 of the line before. So a
line that was altered, moved or lost is found. This is against accidents:
whoever may write the file can write another history, with right checksums.

    >>> first, checksum = guarantee_line(Guarantee(max_epsilon=2.0))
    >>> lines = parse(first, Path("client.ledger"))
    >>> lines.guarantee.max_epsilon, lines.entries, lines.last == checksum
    (2.0, [], True)
"""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import json
import math
from pathlib import Path
import re
import secrets
from typing import Annotated, Any, NamedTuple

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.config import limits
from ecos_jax.messages import fields
from ecos_jax.messages import terms as terms_lib
from ecos_jax.messages import wire
from ecos_jax.privacy import accounting
from ecos_jax.privacy import filter as filter_lib

VERSION = 2
# An incomplete line: a checksum, then the beginning of JSON.
_CUT_OFF = re.compile(
  rb"[0-9a-f]{0,64}|[0-9a-f]{64} (\{.*)?", re.DOTALL | re.ASCII
)
_CLIENT = re.compile(r"[0-9a-f]{32}")
_MOST = 2**40
_UNKNOWN = "so what was spent is not known: restore the file from a copy"


class LedgerError(errors.EcosError):
  """There is no such ledger, or it is damaged, or has another version."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guarantee(fields.Checked):
  """What a ledger promises, fixed before its first answer.

  All its answers together are (max_epsilon, delta)-differentially private.

  Attributes:
    max_epsilon: The most that all answers may cost together; `math.inf` for no
      limit, and so no promise.
    delta: The delta of (epsilon, delta).
    relation: `add_remove` or `replace_one`.
    unit: Who is hidden: one `sample`, or one `person` with all samples.
  """

  max_epsilon: Annotated[float, fields.number(0.0, math.inf)]
  delta: terms_lib.Delta = 1e-5
  relation: terms_lib.Relation = config.Relation.ADD_REMOVE.value
  unit: terms_lib.Unit = config.Unit.SAMPLE.value

  def __str__(self) -> str:
    """Returns the guarantee in words."""
    most = f"epsilon {self.max_epsilon:g}"
    if math.isinf(self.max_epsilon):
      most = "no limit of epsilon"
    return f"{most} (delta {self.delta:g}, {self.relation}, by {self.unit})"


def _named(value: object, field: str) -> object:
  """Checks for named numbers and texts."""
  if not isinstance(value, dict) or not all(
    isinstance(item, float | int | str) for item in value.values()
  ):
    raise wire.ProtocolError(f"{field} must be named numbers and texts")
  return value


@dataclasses.dataclass(frozen=True)
class Entry(fields.Checked):
  """One answer.

  Attributes:
    time: When it was drawn, ISO 8601 in UTC.
    data: Name of the private data.
    query_digest: Digest of the question.
    terms: Terms of the answer, and what else tells answers apart.
    epsilon: What this answer alone costs, for the terms' delta and relation.
    cost: Its cost, which composes.
    response: The bytes of the answer.
  """

  time: Annotated[str, fields.text(re.compile(r"[ -~]*"))]
  data: Annotated[str, fields.text(re.compile(r"(?s).*"))]
  query_digest: Annotated[str, fields.text(re.compile(r"[ -~]*"))]
  terms: Annotated[dict[str, float | int | str], _named]
  epsilon: Annotated[float, fields.number(0.0, math.inf)]
  cost: accounting.Cost
  response: bytes


@dataclasses.dataclass(frozen=True)
class _Release(fields.Checked):
  """The fields of an `accounting.Release` in the file."""

  sigma: Annotated[float, fields.number(limits.MIN_SIGMA, 2 * limits.MAX_SIGMA)]
  gamma: Annotated[float, fields.number(limits.MIN_GAMMA, 1.0)]
  moved: Annotated[int, fields.integer(1, limits.MAX_DIRECTIONS + 1)]
  times: Annotated[int, fields.integer(0, _MOST)]
  weight: Annotated[int, fields.integer(0, limits.MAX_WEIGHT)] = 0

  def __post_init__(self):
    """Also checks that the noise can be accounted for."""
    super().__post_init__()
    if self.release.shift > max(1, 32 * self.sigma**2):
      raise wire.ProtocolError("moved is too large for sigma")

  @classmethod
  def of(cls, release: accounting.Release) -> "_Release":
    r = release
    return cls(r.sigma, r.gamma, r.bins, r.times, r.weight)

  @property
  def release(self) -> accounting.Release:
    return accounting.Release(
      self.sigma, self.gamma, self.moved, self.times, self.weight
    )


class Lines(NamedTuple):
  """What the bytes of a ledger hold.

  Attributes:
    guarantee: Of its first line.
    filter: Also of that line: what adds up the answers.
    client: Also of that line: 128 random bits, in hex.
    entries: Of the others.
    last: The checksum of the last one.
    size: Bytes of all of them; what follows is an incomplete line.
    unended: Whether the last one lacks its end of line, and nothing else.
  """

  guarantee: Guarantee
  filter: filter_lib.Filter
  client: str
  entries: list[Entry]
  last: str
  size: int
  unended: bool


def _line(values: dict[str, Any]) -> tuple[bytes, str]:
  """Returns a line, and its checksum."""
  text = json.dumps(values, sort_keys=True).encode()
  checksum = files.digest(text)
  return checksum.encode() + b" " + text + b"\n", checksum


def guarantee_line(
  guarantee: Guarantee, insecure_client: str | None = None
) -> tuple[bytes, str]:
  """Returns the first line of a ledger, and its checksum.

  The line also fixes the filter, so that another version of this program counts
  as this one does, and 128 random bits that tell this ledger from all others.

  Args:
    guarantee: What the ledger promises.
    insecure_client: 32 hex digits in place of the random bits, for tests.
  """
  values: dict[str, Any] = dataclasses.asdict(guarantee)
  chosen = filter_lib.Filter.of(guarantee.max_epsilon, guarantee.delta)
  values["filter"] = dataclasses.asdict(chosen)
  if math.isinf(guarantee.max_epsilon):  # which JSON lacks
    values["max_epsilon"] = None
  values["client"] = insecure_client or secrets.token_hex(16)
  return _line({"version": VERSION, **values})


def entry_line(entry: Entry, previous: str) -> tuple[bytes, str]:
  """Returns another line, and its checksum.

  Args:
    entry: The answer.
    previous: The checksum of the line before.
  """
  cost = [dataclasses.asdict(_Release.of(r)) for r in entry.cost.releases]
  response = base64.b64encode(entry.response).decode()
  values = dataclasses.asdict(entry) | {"cost": cost, "response": response}
  return _line({"previous": previous, **values})


def _checksum(line: bytes) -> str:
  return line.partition(b" ")[0].decode()


def _matches(line: bytes) -> bool:
  checksum, _, text = line.partition(b" ")
  return files.digest(text).encode() == checksum


def _complete(data: bytes, path: Path) -> tuple[list[bytes], int, bool]:
  """Returns the complete lines, their size, and whether the last lacks its end.

  Raises:
    LedgerError: What follows them is not the beginning of a line.
  """
  *lines, tail = data.split(b"\n")
  if tail and _matches(tail):
    return [*lines, tail], len(data), True
  if not _CUT_OFF.fullmatch(tail):
    raise LedgerError(f"`ledger`: {path} is not a ledger: name another file")
  return lines, len(data) - len(tail), False


@contextlib.contextmanager
def _reading(number: int, line: bytes, path: Path) -> Iterator[dict[str, Any]]:
  """Yields the fields of a line, and says which line an error is about."""
  where = f"`ledger`: line {number} of {path}"
  if not _matches(line):
    raise LedgerError(f"{where} is damaged, {_UNKNOWN}")
  try:
    yield json.loads(line.partition(b" ")[2])
  except LedgerError as error:
    error.args = (f"{where} {error}",)
    raise
  # What a line with a right checksum and wrong fields may cause.
  except (
    errors.EcosError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
  ) as error:
    raise LedgerError(
      f"{where} has a right checksum and wrong fields, {_UNKNOWN} ({error})"
    ) from error


def _guarantee(
  values: dict[str, Any],
) -> tuple[Guarantee, filter_lib.Filter, str]:
  version = values.pop("version")
  if version == 1:
    raise LedgerError(
      "has version 1, which fixes no budget: `python -m "
      "ecos_jax.client.ledger upgrade` copies its answers to a new ledger"
    )
  if version != VERSION:
    raise LedgerError(
      f"has version {version}, this program reads {VERSION}: use the newer "
      "ecos_jax that wrote it"
    )
  if values["max_epsilon"] is None:
    values["max_epsilon"] = math.inf
  chosen = filter_lib.Filter(**values.pop("filter"))
  client = values.pop("client")
  if not isinstance(client, str) or not _CLIENT.fullmatch(client):
    raise LedgerError("has no random bits as `client`")
  return Guarantee(**values), chosen, client


def _entry(values: dict[str, Any]) -> Entry:
  cost = tuple(_Release(**release).release for release in values["cost"])
  response = base64.b64decode(values["response"], validate=True)
  values |= {"cost": accounting.Cost(cost), "response": response}
  return Entry(**values)


def parse(data: bytes, path: Path) -> Lines | None:
  """Returns what the bytes of a ledger hold, or None if they hold no line.

  Args:
    data: The whole file.
    path: Its name, for errors.

  Raises:
    LedgerError: A line is damaged, missing or moved, or has another version; or
      the file is not a ledger.
  """
  lines, size, unended = _complete(data, path)
  if not lines:
    return None
  with _reading(1, lines[0], path) as values:
    guarantee, chosen, client = _guarantee(values)
  entries = []
  last = _checksum(lines[0])
  for number, line in enumerate(lines[1:], start=2):
    with _reading(number, line, path) as values:
      if values.pop("previous") != last:
        raise LedgerError(
          "does not follow the line before it: lines are missing or moved, "
          f"{_UNKNOWN}"
        )
      entries.append(_entry(values))
    last = _checksum(line)
  return Lines(guarantee, chosen, client, entries, last, size, unended)


def parse_version_1(
  data: bytes, path: Path
) -> tuple[list[Entry], dict[str, Any]]:
  """Returns what a ledger of version 1 holds, which has no first line.

  Args:
    data: The whole file.
    path: Its name, for errors.

  Returns:
    The entries, and the strictest delta and relation of their terms.

  Raises:
    LedgerError: A line is damaged, or the file is not a ledger of version 1.
  """
  entries, strictest = [], {}
  for number, line in enumerate(_complete(data, path)[0], start=1):
    with _reading(number, line, path) as values:
      if values.pop("version") != 1:
        raise LedgerError("has another version than 1: nothing to upgrade")
      entry = _entry(values)
      asked: dict[str, Any] = entry.terms
      own = Guarantee(
        max_epsilon=0.0, delta=asked["delta"], relation=asked["relation"]
      )
      # replace_one, the stricter relation, is the last one in the alphabet.
      strictest = {
        "delta": min(own.delta, strictest.get("delta", 1.0)),
        "relation": max(own.relation, strictest.get("relation", "")),
      }
      entries.append(entry)
  return entries, strictest

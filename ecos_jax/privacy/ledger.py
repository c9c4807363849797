"""The client's own record of what it has spent: append-only, durable, locked.

An epsilon covers one answer; what a client gives away over the years is the
composition of all its answers. The ledger is a file with one line for each
answer: its cost, and the answer itself. Each body of private data has one
ledger. The client can be killed at any moment, because of this order:

1. Noise is drawn in memory; nobody has seen it.
2. Cost and answer go into the ledger as one line, forced to the disk.
3. Only then may the answer leave.

If the client is killed before 2 is complete, the answer never left, and the
next run draws for the first time. If it is killed later, the next run finds the
answer in the ledger and gives that one again.

So an incomplete last line belongs to an answer that never left: it is reported
and removed. Any other line that does not match its checksum is damage and is
refused, since a cost might be missing. A file that is not a ledger is refused
and left as it is.
"""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import re
from typing import Any, BinaryIO

from absl import logging

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax.privacy import accounting

VERSION = 1
# An incomplete line: a checksum, then the beginning of JSON.
_CUT_OFF = re.compile(
  rb"[0-9a-f]{1,64}|[0-9a-f]{64} (\{.*)?", re.DOTALL | re.ASCII
)


class LedgerError(errors.EcosError):
  """The file is not a ledger, or is damaged, or has a newer version."""


class BudgetError(errors.EcosError):
  """The budget does not allow an answer; nothing was spent."""


@dataclasses.dataclass(frozen=True)
class Entry:
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

  time: str
  data: str
  query_digest: str
  terms: dict[str, float | int | str]
  epsilon: float
  cost: accounting.Cost
  response: bytes


def _release_fields(release: accounting.Release) -> dict[str, float | int]:
  """Returns the fields of a release, by their names in the file."""
  fields: dict[str, Any] = dataclasses.asdict(release)
  if not release.weight:
    del fields["weight"]
  return fields | {"moved": fields.pop("bins")}


def _release(fields: dict[str, Any]) -> accounting.Release:
  return accounting.Release(bins=fields.pop("moved"), **fields)


def _to_line(entry: Entry) -> bytes:
  fields = {
    **dataclasses.asdict(entry),
    "version": VERSION,
    "cost": [_release_fields(release) for release in entry.cost.releases],
    "response": base64.b64encode(entry.response).decode(),
  }
  text = json.dumps(fields, sort_keys=True).encode()
  return files.digest(text).encode() + b" " + text + b"\n"


def _from_line(line: bytes) -> Entry | None:
  """Returns the entry, or None if the line does not match its checksum."""
  checksum, _, text = line.partition(b" ")
  if files.digest(text).encode() != checksum:
    return None
  fields = json.loads(text)
  version = fields.pop("version")
  if version != VERSION:
    raise LedgerError(
      f"the ledger has version {version}, this program reads {VERSION}: use "
      "the newer ecos_jax that wrote it"
    )
  fields["cost"] = accounting.Cost(tuple(map(_release, fields["cost"])))
  fields["response"] = base64.b64decode(fields["response"])
  return Entry(**fields)


class Ledger:
  """An open, locked ledger; made by `locked`."""

  def __init__(self, file: BinaryIO, path: Path):
    """Reads a locked file, and removes an incomplete last line.

    Raises:
      LedgerError: A line is damaged, or the file is not a ledger.
    """
    self._file = file
    self.entries: list[Entry] = []
    file.seek(0)
    *lines, tail = file.read().split(b"\n")
    for number, line in enumerate(lines, start=1):
      entry = _from_line(line)
      if entry is None:
        raise LedgerError(
          f"`ledger`: line {number} of {path} is damaged, so what was spent is "
          "not known: restore the file from a copy"
        )
      self.entries.append(entry)
    whole = _from_line(tail)
    if whole is not None:
      # Only its end of line is missing: the answer may have left.
      self.entries.append(whole)
      self._write(b"\n")
    elif tail:
      if not _CUT_OFF.fullmatch(tail):
        raise LedgerError(
          f"`ledger`: {path} is not a ledger: name another file"
        )
      logging.warning(
        "%s: removed an incomplete last line; its answer never left", path
      )
      file.truncate(file.tell() - len(tail))
      os.fsync(file.fileno())

  def _write(self, data: bytes) -> None:
    self._file.write(data)
    self._file.flush()
    os.fsync(self._file.fileno())

  def guarantee(
    self, terms: messages.Terms | messages.LabelTerms
  ) -> tuple[float, str]:
    """Returns the strictest delta and relation of `terms` and all entries."""
    deltas = [terms.delta, *(entry.terms["delta"] for entry in self.entries)]
    relations = {terms.relation, *(e.terms["relation"] for e in self.entries)}
    replace_one = config.Relation.REPLACE_ONE.value
    relation = replace_one if replace_one in relations else terms.relation
    return min(map(float, deltas)), relation

  def epsilon(
    self,
    terms: messages.Terms | messages.LabelTerms,
    cost: accounting.Cost | None = None,
  ) -> float:
    """Returns the epsilon of all entries, about any data, and of `cost`.

    It holds for the delta and relation of `guarantee`, so a later answer with a
    larger delta or another relation does not lower it.

    Args:
      terms: Of a planned answer.
      cost: Of that answer; None for what was spent before.

    Raises:
      EcosError: No bound is proven for the relation.
    """
    costs = [entry.cost for entry in self.entries]
    if cost is not None:
      costs.append(cost)
    return accounting.Cost.total(costs, *self.guarantee(terms))

  def check_budget(
    self,
    terms: messages.Terms | messages.LabelTerms,
    cost: accounting.Cost,
    max_epsilon: float | None,
  ) -> None:
    """Checks that an answer keeps the budget; None is no budget.

    Raises:
      BudgetError: It does not.
      EcosError: No bound is proven for the relation.
    """
    total = self.epsilon(terms, cost)
    # Written so that a budget of NaN refuses.
    if max_epsilon is not None and not total <= max_epsilon:
      raise BudgetError(
        f"refused: {self.epsilon(terms):g} of `max_epsilon`={max_epsilon:g} is "
        f"spent, and with this answer it would be {total:g}; give a smaller "
        "`epsilon`"
      )

  def find(self, query_digest: str, data: str, terms: dict) -> Entry | None:
    """Returns the entry with this question, data and terms, if there is one."""
    asked = (query_digest, data, terms)
    for entry in self.entries:
      if (entry.query_digest, entry.data, entry.terms) == asked:
        return entry
    return None

  def append(self, entry: Entry) -> None:
    """Adds an entry; when this returns, it survives a loss of power."""
    self._write(_to_line(entry))
    self.entries.append(entry)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Ledger]:
  """Yields the ledger at `path`, locked; the file is made if need be.

  A second process waits until the first is done. However a process ends, its
  lock ends with it.

  Raises:
    LedgerError: A line is damaged, or the file is not a ledger.
  """
  if path.exists() and not path.is_file():
    raise LedgerError(f"`ledger`: {path} is not a file")
  descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
  with os.fdopen(descriptor, "a+b") as file:
    # Also if another process made the file: it may not have got so far.
    files.sync(path.parent)
    if not files.lock(file, wait=False):
      logging.warning("%s: waiting for another process that has it", path)
      files.lock(file)
    yield Ledger(file, path)

"""The client's own record of what it has spent: append-only, durable, locked.

An epsilon covers one answer; what a client gives away over the years is the
composition of all its answers. The ledger is a file of one line an answer with
its cost and the answer itself, and one ledger belongs to one body of private
data. The order of things makes it safe to kill the client at any moment:

1. Noise is drawn in memory; nobody has seen it.
2. Cost and answer go into the ledger as one line, forced to the disk.
3. Only then may the answer leave.

Killed before the end of 2, the answer never left, and drawing again is a first
draw. Killed after it, the next run finds the answer in the ledger and hands out
that one instead of spending again.

So a last line that is cut off belongs to an answer that never left: it is
reported and removed. Any other line that does not match its checksum is damage,
and refused, since a spend might be missing. So is a file that is no ledger: it
is left as it is.
"""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import re
from typing import BinaryIO

from absl import logging

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax.privacy import accounting

VERSION = 1
# How the start of a line that was cut off looks: checksum, then JSON.
_CUT_OFF = re.compile(
  rb"[0-9a-f]{1,64}|[0-9a-f]{64} (\{.*)?", re.DOTALL | re.ASCII
)


class LedgerError(errors.EcosError):
  """The file is no ledger, a damaged one, or of a newer version."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """One answer.

  Attributes:
    time: When, ISO 8601 in UTC.
    data: A tag of the private data that were asked.
    query_digest: What was answered.
    terms: Of the answer.
    epsilon: Of this answer alone, at the delta and relation of the terms.
    cost: What it spent.
    response: The bytes that left.
  """

  time: str
  data: str
  query_digest: str
  terms: dict[str, float | int | str]
  epsilon: float
  cost: accounting.Cost
  response: bytes


def _to_line(entry: Entry) -> bytes:
  fields = {
    **dataclasses.asdict(entry),
    "version": VERSION,
    "cost": [dataclasses.asdict(release) for release in entry.cost.releases],
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
      f"the ledger has version {version}, this program knows {VERSION}: use "
      "the newer ecos_jax that wrote it"
    )
  releases = tuple(accounting.Release(**release) for release in fields["cost"])
  fields["cost"] = accounting.Cost(releases)
  fields["response"] = base64.b64decode(fields["response"])
  return Entry(**fields)


class Ledger:
  """An open, locked ledger; made by `locked`."""

  def __init__(self, file: BinaryIO, path: Path):
    """Reads the file, which must be locked, and removes a cut-off last line.

    Raises:
      LedgerError: A line is damaged, or the file is no ledger.
    """
    self._file = file
    self.entries: list[Entry] = []
    file.seek(0)
    *lines, tail = file.read().split(b"\n")
    for number, line in enumerate(lines, start=1):
      entry = _from_line(line)
      if entry is None:
        raise LedgerError(
          f"--ledger: line {number} of {path} is damaged, so what was spent is "
          "not known: restore the file from a copy"
        )
      self.entries.append(entry)
    whole = _from_line(tail)
    if whole is not None:
      # Only its end of line is lost: the spend counts.
      self.entries.append(whole)
      self._write(b"\n")
    elif tail:
      if not _CUT_OFF.fullmatch(tail):
        raise LedgerError(f"--ledger: {path} is no ledger: name another file")
      logging.warning(
        "%s: the last line was cut off before its answer left; removed", path
      )
      file.truncate(file.tell() - len(tail))
      os.fsync(file.fileno())

  def _write(self, data: bytes) -> None:
    self._file.write(data)
    self._file.flush()
    os.fsync(self._file.fileno())

  def promise(
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
    """Returns the epsilon of all entries, whatever data, and of `cost`.

    It is that of `promise`, so that a smaller delta or another relation later
    takes nothing back.

    Args:
      terms: Of the answer that is thought of.
      cost: Of that answer; what was spent before without.

    Raises:
      EcosError: No bound is proven for the relation.
    """
    costs = [entry.cost for entry in self.entries]
    if cost is not None:
      costs.append(cost)
    return accounting.Cost.total(costs, *self.promise(terms))

  def find(self, query_digest: str, data: str, terms: dict) -> Entry | None:
    """Returns the entry of this query on these data at these terms."""
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
  """Yields the ledger at `path`, made if need be, and nobody else has it.

  A second process waits until the first is done; the lock goes with the process
  that holds it, however that ends.

  Raises:
    LedgerError: A line is damaged, or the file is no ledger.
  """
  if path.exists() and not path.is_file():
    raise LedgerError(f"--ledger: {path} is no file")
  descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
  with os.fdopen(descriptor, "a+b") as file:
    # Also if another process made the file: it may not have got so far.
    files.sync(path.parent)
    if not files.lock(file, wait=False):
      logging.warning("%s: waiting for another process that has it", path)
      files.lock(file)
    yield Ledger(file, path)

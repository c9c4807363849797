"""The client's own record of what it has spent: append-only, durable, locked.

An epsilon covers one answer; what a client gives away over the years is the
composition of all its answers. The ledger is a file that bounds it: the most
that all answers may cost together, fixed when the file is made, then each
answer and its cost, a line each (`records`). Each body of private data has one
ledger. The client can be killed at any moment, because of this order:

1. Noise is drawn in memory; nobody has seen it.
2. Cost and answer go into the ledger as one line, forced to the disk.
3. Only then may the answer leave.

If the client is killed before 2 is complete, the answer never left, and the
next run draws for the first time. If it is killed later, the next run finds the
answer in the ledger and gives that one again.

So an incomplete last line belongs to an answer that never left: it is reported
and removed. Any other line that does not match its checksum, or does not follow
the line before it, is damage and is refused, since a cost might be missing. A
file that is not a ledger is refused and left as it is.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
from pathlib import Path
from typing import Any, BinaryIO

from absl import logging

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.privacy import accounting
from ecos_jax.privacy import records
from ecos_jax.privacy.records import Entry
from ecos_jax.privacy.records import Guarantee
from ecos_jax.privacy.records import LedgerError

__all__ = [
  "BudgetError",
  "Entry",
  "Guarantee",
  "Ledger",
  "LedgerError",
  "create",
  "locked",
  "read",
  "upgrade",
]


class BudgetError(errors.EcosError):
  """The budget does not allow an answer; nothing was spent."""


class Ledger:
  """What a ledger holds; one that `locked` yields can grow.

  Attributes:
    guarantee: What all answers together may cost.
    entries: The answers, in their order.
    incomplete: Whether the file had an incomplete last line.
  """

  def __init__(self, data: bytes, path: Path, file: BinaryIO | None = None):
    """Reads the bytes of a ledger.

    Args:
      data: The whole file.
      path: Its name, for errors.
      file: The file, locked, if it may grow. An incomplete last line is removed
        from it.

    Raises:
      LedgerError: A line is damaged, or the file is not a ledger.
    """
    lines = records.parse(data, path)
    if lines is None:
      raise LedgerError(
        f"`ledger`: {path} is empty: make it a ledger with `create_ledger` and "
        "`max_epsilon`"
      )
    self.guarantee = lines.guarantee
    self._filter = lines.filter
    self._client = lines.client
    self.entries = lines.entries
    self.incomplete = lines.size < len(data)
    self._last = lines.last
    self._path, self._file = path, file
    if file and lines.unended:
      # The answer may have left.
      _write(file, b"\n")
    elif file and self.incomplete:
      logging.warning(
        "%s: removed an incomplete last line; its answer never left", path
      )
      file.truncate(lines.size)
      os.fsync(file.fileno())

  def total(self, costs: Sequence[accounting.Cost]) -> float:
    """Returns the epsilon of answers, for the guarantee's delta and relation.

    Raises:
      EcosError: No bound is proven for the relation.
    """
    guarantee = self.guarantee
    return self._filter.epsilon(costs, guarantee.delta, guarantee.relation)

  def epsilon(self, cost: accounting.Cost | None = None) -> float:
    """Returns the epsilon of all entries, about any data, and of `cost`.

    Args:
      cost: Of a planned answer; None for what was spent before.

    Raises:
      EcosError: No bound is proven for the relation.
    """
    costs = [entry.cost for entry in self.entries]
    if cost is not None:
      costs.append(cost)
    return self.total(costs)

  def check_budget(self, cost: accounting.Cost) -> None:
    """Checks that an answer keeps the guarantee.

    Raises:
      BudgetError: It does not.
      EcosError: No bound is proven for the relation.
    """
    total, most = self.epsilon(cost), self.guarantee.max_epsilon
    # Written so that a total of NaN refuses.
    if not total <= most:
      raise BudgetError(
        f"refused: {self.epsilon():g} of `max_epsilon`={most:g} is spent, and "
        f"with this answer it would be {total:g}; give a smaller `epsilon`"
      )

  def client(self, query_digest: str) -> str:
    """Returns what all answers to a question say of who gives them, 128 bits.

    So a cloud that adds up the answers of many clients finds two of one client.
    It learns nothing else: without the random bits in the ledger, ids for other
    questions look unrelated.
    """
    return files.digest(self._client.encode(), query_digest.encode())[:32]

  def find(self, query_digest: str, data: str, terms: dict) -> Entry | None:
    """Returns the entry with this question, data and terms, if there is one."""
    asked = (query_digest, data, terms)
    for entry in self.entries:
      if (entry.query_digest, entry.data, entry.terms) == asked:
        return entry
    return None

  def append(self, entry: Entry) -> None:
    """Adds an entry; when this returns, it survives a loss of power.

    Raises:
      LedgerError: The file was replaced or deleted since it was locked.
    """
    assert self._file is not None
    if not _is_at(self._file, self._path):
      raise LedgerError(
        f"`ledger`: {self._path} was replaced or deleted meanwhile, so nothing "
        "was answered, nor spent: see that it is whole, and ask again"
      )
    line, self._last = records.entry_line(entry, self._last)
    _write(self._file, line)
    self.entries.append(entry)


def _write(file: BinaryIO, data: bytes) -> None:
  file.write(data)
  file.flush()
  os.fsync(file.fileno())


def _is_at(file: BinaryIO, path: Path) -> bool:
  """Returns whether an open file is what lies at a path now."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False


@contextlib.contextmanager
def _locked(path: Path, mode: int) -> Iterator[BinaryIO]:
  """Yields an open file, at its start, while no other process has it.

  Args:
    path: The file.
    mode: As in `os.open`.
  """
  if path.exists() and not path.is_file():
    raise LedgerError(f"`ledger`: {path} is not a file")
  try:
    descriptor = os.open(path, mode, 0o600)
  except FileNotFoundError as error:
    raise LedgerError(
      f"`ledger`: {path} is not there, and a new ledger would be a new budget: "
      "correct the path, or make one with `create_ledger` and `max_epsilon`"
    ) from error
  with os.fdopen(descriptor, "a+b" if mode & os.O_RDWR else "rb") as file:
    # Also if another process made the file: it may not have got so far.
    files.sync(path.parent)
    try:
      if not files.lock(file, wait=False):
        logging.warning("%s: waiting for another process that has it", path)
        files.lock(file)
    except files.NoLocksError as error:
      raise LedgerError(
        f"`ledger`: {path}: {error}: two answers at once could overspend the "
        "budget; put it on a local disk"
      ) from error
    if not _is_at(file, path):
      raise LedgerError(
        f"`ledger`: {path} was replaced or deleted meanwhile: try again"
      )
    file.seek(0)
    yield file


def create(
  path: Path | str,
  *,
  max_epsilon: float,
  delta: float = 1e-5,
  relation: str = config.Relation.ADD_REMOVE.value,
  unit: str = config.Unit.SAMPLE.value,
  insecure_client: str | None = None,
) -> Guarantee:
  """Makes a ledger and returns its guarantee, which nothing changes later.

  A ledger that has this very guarantee already is left as it is.

  Args:
    path: The file, one for each body of private data.
    max_epsilon: The most that all answers may ever cost together; `math.inf`
      for no limit.
    delta: The delta of (epsilon, delta).
    relation: `add_remove` or `replace_one`: what epsilon hides.
    unit: As in `Guarantee`.
    insecure_client: For tests and studies: 32 hex digits in place of the random
      bits that tell this ledger from all others.

  Raises:
    EcosError: An argument is out of range, or the file has another guarantee or
      is not a ledger.
  """
  path = Path(path)
  guarantee = Guarantee(
    max_epsilon=max_epsilon, delta=delta, relation=relation, unit=unit
  )
  with _locked(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
    lines = records.parse(file.read(), path)
    if lines is None:
      file.truncate(0)
      _write(file, records.guarantee_line(guarantee, insecure_client)[0])
    elif lines.guarantee != guarantee:
      raise LedgerError(
        f"`ledger`: {path} is there, and its budget is {lines.guarantee}: use "
        "it as it is, or make another ledger for other data"
      )
  return guarantee


def read(path: Path | str) -> Ledger:
  """Returns what a ledger holds, and writes nothing.

  Raises:
    LedgerError: There is no such file, a line is damaged, or the file is not a
      ledger.
  """
  path = Path(path)
  with _locked(path, os.O_RDONLY) as file:
    return Ledger(file.read(), path)


@contextlib.contextmanager
def locked(path: Path | str) -> Iterator[Ledger]:
  """Yields the ledger at `path`, locked, without an incomplete last line.

  A second process waits until the first is done. However a process ends, its
  lock ends with it.

  Raises:
    LedgerError: As `read`.
  """
  path = Path(path)
  with _locked(path, os.O_RDWR | os.O_APPEND) as file:
    yield Ledger(file.read(), path, file)


def upgrade(path: Path, out: Path, **guarantee: Any) -> Ledger:
  """Copies the answers of a ledger of version 1 to a new ledger.

  Args:
    path: The old ledger, which stays as it is.
    out: The new one; it must not exist.
    **guarantee: Fields of `Guarantee`. Without delta or relation, the strictest
      of the answers.

  Returns:
    The new ledger.

  Raises:
    EcosError: `path` is not a ledger of version 1, `out` exists, or a field is
      out of range.
  """
  if out.exists():
    raise LedgerError(f"`out`: {out} exists: name a new file")
  with _locked(path, os.O_RDONLY) as file:
    entries, strictest = records.parse_version_1(file.read(), path)
  line, last = records.guarantee_line(Guarantee(**strictest | guarantee))
  lines = [line]
  for entry in entries:
    line, last = records.entry_line(entry, last)
    lines.append(line)
  files.write(out, *lines, mode=0o600)
  return read(out)

import concurrent.futures
import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import stat
import threading

import pytest

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.privacy import accounting
from ecos_jax.privacy import filter as filter_lib
from ecos_jax.privacy import ledger
from tests.privacy import version_1

TERMS = messages.Terms(10.0, 0.8, 1e-5, "add_remove")
FIELDS = dataclasses.asdict(TERMS)


def _cost(sigma):
  return accounting.Cost((accounting.Release(sigma, 0.8),))


def _entry(query="q1", data="mine", sigma=10.0, response=b"\0\1answer\xff"):
  return ledger.Entry(
    time="2026-01-02T03:04:05+00:00",
    data=data,
    query_digest=query,
    terms={**FIELDS, "sigma": sigma},
    epsilon=0.276049,
    cost=_cost(sigma),
    response=response,
  )


@pytest.fixture(name="path")
def _path(tmp_path):
  """A ledger with a budget of 2."""
  path = tmp_path / "ledger.jsonl"
  ledger.create(path, max_epsilon=2.0)
  return path


def _write(path, *entries):
  with ledger.locked(path) as book:
    for entry in entries:
      book.append(entry)


def _read(path):
  """Returns the entries, after removing an incomplete last line."""
  with ledger.locked(path) as book:
    return book.entries


def test_entries_come_back_as_they_went_in(path):
  entries = [_entry(), _entry(query="q2", sigma=20.5)]
  _write(path, entries[0])
  _write(path, entries[1])
  assert _read(path) == ledger.read(path).entries == entries
  assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_names_in_the_file_are_those_of_version_2(path):
  _write(path, _entry())
  first, second = path.read_bytes().splitlines()
  fixed = json.loads(first.partition(b" ")[2])
  assert len(bytes.fromhex(fixed.pop("client"))) == 16
  assert fixed == {
    "version": 2,
    "max_epsilon": 2.0,
    "delta": 1e-5,
    "relation": "add_remove",
    "unit": "sample",
    "filter": {
      name: list(values)
      for name, values in vars(filter_lib.Filter.of(2.0, 1e-5)).items()
    },
  }
  assert json.loads(second.partition(b" ")[2]) == {
    "previous": hashlib.sha256(first[65:]).hexdigest(),
    "time": "2026-01-02T03:04:05+00:00",
    "data": "mine",
    "query_digest": "q1",
    "terms": {**FIELDS, "sigma": 10.0},
    "epsilon": 0.276049,
    "cost": [
      {"sigma": 10.0, "gamma": 0.8, "moved": 1, "times": 1, "weight": 0}
    ],
    "response": "AAFhbnN3ZXL/",
  }


# What is fixed when a ledger is made.


def test_a_ledger_is_made_once_and_only_on_request(tmp_path):
  path, own = tmp_path / "ledger", {"max_epsilon": 2.0, "delta": 1e-6}
  for use in (ledger.read, _read):
    with pytest.raises(ledger.LedgerError, match="is not there"):
      use(path)
  assert not path.exists()
  guarantee = ledger.create(path, relation="replace_one", **own)
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  _write(path, _entry())
  before = path.read_bytes()
  assert ledger.create(path, relation="replace_one", **own) == guarantee
  for other in (own, {**own, "relation": "replace_one", "max_epsilon": 3.0}):
    with pytest.raises(ledger.LedgerError, match="its budget is epsilon 2 "):
      ledger.create(path, **other)
  assert path.read_bytes() == before
  book = ledger.read(path)
  assert (book.guarantee, book.entries) == (guarantee, [_entry()])


@pytest.mark.parametrize(
  "wrong",
  [
    {"max_epsilon": -1.0},
    {"max_epsilon": math.nan},
    {"max_epsilon": "2"},
    {"delta": 0.5},
    {"relation": "none"},
    {"unit": "hospital"},
  ],
)
def test_a_wrong_guarantee_makes_no_ledger(tmp_path, wrong):
  (name,) = wrong
  with pytest.raises(errors.EcosError, match=name):
    ledger.create(tmp_path / "ledger", **{"max_epsilon": 1.0} | wrong)
  assert list(tmp_path.iterdir()) == []


def test_the_filter_of_the_file_counts(path):
  # A later version may choose other orders for new ledgers.
  fields = json.loads(path.read_bytes()[65:])
  fields["filter"] = {"orders": [2.0], "shares": [1.0]}
  path.write_bytes(_line(fields))
  _write(path, _entry(), _entry(query="q2"))
  chosen = filter_lib.Filter((2.0,), (1.0,))
  costs = [_cost(10.0), _cost(10.0)]
  expected = chosen.epsilon(costs, 1e-5, "add_remove")
  assert ledger.read(path).epsilon() == expected > 5
  ledger.create(path, max_epsilon=2.0)


def test_no_limit_is_written_without_infinity(tmp_path):
  path = tmp_path / "ledger"
  ledger.create(path, max_epsilon=math.inf)
  assert json.loads(path.read_bytes()[65:])["max_epsilon"] is None
  book = ledger.read(path)
  assert book.guarantee.max_epsilon == math.inf
  book.check_budget(_cost(0.3))


def test_killed_while_it_was_made_a_ledger_is_made_again(path):
  whole = path.read_bytes()
  for size in (0, 1, 64, 70, len(whole) - 2):
    path.write_bytes(whole[:size])
    with pytest.raises(ledger.LedgerError, match="is empty"):
      ledger.read(path)
    ledger.create(path, max_epsilon=2.0)
    # All but the random bits.
    assert len(path.read_bytes()) == len(whole)
    assert ledger.read(path).guarantee.max_epsilon == 2.0


def test_answers_to_one_question_say_who_gives_them_and_nothing_else(
  path, tmp_path
):
  book, other = ledger.read(path), tmp_path / "other"
  ledger.create(other, max_epsilon=2.0)
  says = book.client("q1")
  _write(path, _entry())
  assert ledger.read(path).client("q1") == says
  bits = json.loads(path.read_bytes()[65:].splitlines()[0])["client"]
  said = hashlib.sha256(f"{bits}q1".encode()).hexdigest()
  assert says == said[:32] and bits not in said
  assert len({says, book.client("q2"), ledger.read(other).client("q1")}) == 3


def test_answers_are_added_up_whatever_their_data(path):
  _write(path, *(_entry(query=q, data=q) for q in ("q1", "q2", "q3")))
  book = ledger.read(path)
  total = book.epsilon()
  chosen = filter_lib.Filter.of(2.0, 1e-5)
  assert total == chosen.epsilon(3 * [_cost(10.0)], 1e-5, "add_remove")
  assert book.epsilon(_cost(10.0)) > total
  assert total >= sum(3 * [_cost(10.0)], accounting.Cost()).epsilon(
    1e-5, "add_remove"
  )


def test_the_delta_and_relation_of_the_ledger_count(tmp_path):
  path = tmp_path / "ledger"
  ledger.create(path, max_epsilon=3.0, delta=1e-7, relation="replace_one")
  # This answer states its own epsilon for another delta.
  _write(path, _entry(), _entry(query="q2"))
  book = ledger.read(path)
  chosen = filter_lib.Filter.of(3.0, 1e-7)
  costs = [_cost(10.0), _cost(10.0)]
  assert book.epsilon() == chosen.epsilon(costs, 1e-7, "replace_one")
  # Nothing is proven for labels there.
  votes = accounting.Cost((accounting.Release(9.0, 0.1, bins=2),))
  with pytest.raises(errors.EcosError, match="ledgers"):
    book.epsilon(votes)


def test_an_answer_over_the_budget_is_refused(path):
  _write(path, _entry())
  book = ledger.read(path)
  book.check_budget(_cost(10.0))
  said = r"0\.276049 of `max_epsilon`=2 is spent"
  with pytest.raises(ledger.BudgetError, match=said):
    book.check_budget(_cost(1.0))


def test_all_of_the_budget_may_be_spent_and_no_more(tmp_path):
  ledger.create(tmp_path / "free", max_epsilon=math.inf)
  total = ledger.read(tmp_path / "free").epsilon(_cost(1.0))
  ledger.create(tmp_path / "enough", max_epsilon=total)
  ledger.read(tmp_path / "enough").check_budget(_cost(1.0))
  ledger.create(tmp_path / "less", max_epsilon=total * (1 - 1e-6))
  with pytest.raises(ledger.BudgetError):
    ledger.read(tmp_path / "less").check_budget(_cost(1.0))


# What is asked for again.


def test_only_the_very_same_question_finds_the_stored_answer(path):
  _write(path, _entry())
  book = ledger.read(path)
  assert book.find("q1", "mine", FIELDS) == _entry()
  assert book.find("q2", "mine", FIELDS) is None
  assert book.find("q1", "other", FIELDS) is None
  for change in ({"sigma": 11.0}, {"relation": "replace_one"}):
    assert book.find("q1", "mine", {**FIELDS, **change}) is None


def test_an_empty_ledger_costs_nothing(path):
  book = ledger.read(path)
  assert book.entries == []
  assert book.epsilon() == 0.0


# Damage.


def test_a_cut_off_last_line_is_reported_and_removed(path, caplog):
  _write(path, _entry())
  first = path.read_bytes()
  _write(path, _entry(query="q2"))
  whole = path.read_bytes()
  sizes = [*range(1, 70), *range(70, len(whole) - len(first) - 1, 29)]
  for size in (len(first) + size for size in sizes):
    path.write_bytes(whole[:size])
    caplog.clear()
    assert _read(path) == [_entry()]
    assert "removed an incomplete last line" in caplog.text
    assert path.read_bytes() == first
  # What is written next starts on a line of its own.
  path.write_bytes(whole[:-9])
  _write(path, _entry(query="q3"))
  assert _read(path) == [_entry(), _entry(query="q3")]


def test_a_last_line_that_lacks_only_its_end_counts(path):
  _write(path, _entry(), _entry(query="q2"))
  whole = path.read_bytes()
  path.write_bytes(whole[:-1])
  assert _read(path) == [_entry(), _entry(query="q2")]
  assert path.read_bytes() == whole


def test_damage_is_refused(path):
  _write(path, _entry(), _entry(query="q2"))
  lines = path.read_bytes().splitlines(keepends=True)
  for number, (old, new) in enumerate(
    [(b"2.0", b"9.0"), (b"0.8", b"0.1"), (b"0.8", b"0.1")], start=1
  ):
    changed = lines.copy()
    changed[number - 1] = changed[number - 1].replace(old, new)
    damaged = b"".join(changed)
    path.write_bytes(damaged)
    with pytest.raises(ledger.LedgerError, match=f"line {number} .* damaged"):
      _read(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
  ("order", "line"),
  [
    ([0, 2, 3], 2),  # the first answer is missing
    ([0, 1, 3], 3),
    ([0, 2, 1, 3], 2),  # moved
    ([0, 1, 1, 2, 3], 3),  # doubled
    ([1, 2, 3], 1),  # the guarantee is missing
    ([0, 0, 1], 2),
  ],
)
def test_missing_and_moved_lines_are_refused(path, order, line):
  _write(path, *(_entry(query=q) for q in ("q1", "q2", "q3")))
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(lines[i] for i in order))
  with pytest.raises(ledger.LedgerError, match=f"line {line} "):
    ledger.read(path)


def _line(fields):
  """Returns a line with a right checksum, whatever its fields."""
  text = fields if isinstance(fields, str) else json.dumps(fields)
  return f"{hashlib.sha256(text.encode()).hexdigest()} {text}\n".encode()


_WRONG = (
  None,
  True,
  -1,
  0,
  1e400,
  math.nan,
  10**400,
  "",
  "x",
  "\0",
  [],
  [[]],
  {},
  [{}],
  {"sigma": 1.0},
  [{"sigma": 1.0, "gamma": 2.0, "moved": 1, "times": 1}],
)


def test_wrong_fields_with_a_right_checksum_are_refused(path):
  _write(path, _entry())
  first, second = path.read_bytes().splitlines(keepends=True)
  guarantee, entry = (json.loads(line[65:]) for line in (first, second))
  cases = [(0, text) for text in ("[]", "1", "", "{", "{}", "[" * 100_000)]
  for at, fields in enumerate((guarantee, entry)):
    for name in fields:
      cases.append((at, {k: v for k, v in fields.items() if k != name}))
      cases += [(at, {**fields, name: value}) for value in _WRONG]
    cases.append((at, {**fields, "surplus": 1}))
  refused = 0
  for at, fields in cases:
    lines = [first, second]
    lines[at] = _line(fields)
    path.write_bytes(b"".join(lines))
    try:
      book = ledger.read(path)
    except ledger.LedgerError as error:
      assert f"line {at + 1} " in str(error) or "line 2" in str(error)
      refused += 1
    else:
      # Another value of the same kind, such as another budget or data's name.
      assert book.epsilon() >= 0.0
  assert refused > 0.8 * len(cases)


def test_an_old_ledger_is_copied_to_a_new_one(tmp_path):
  old, new = tmp_path / "old", tmp_path / "new"
  entries = _entry(), _entry(query="q2")
  for entry, delta in zip(entries, (1e-5, 1e-6), strict=True):
    entry.terms.update(delta=delta, relation="replace_one")
  content = version_1.ledger(*entries)
  old.write_bytes(content)
  with pytest.raises(ledger.LedgerError, match=r"version 1.*client\.ledger"):
    ledger.read(old)
  with pytest.raises(ledger.LedgerError, match="version 1"):
    ledger.create(old, max_epsilon=2.0)
  book = ledger.upgrade(old, new, max_epsilon=2.0)
  assert book.entries == list(entries)
  guarantee = book.guarantee
  assert (guarantee.delta, guarantee.relation) == (1e-6, "replace_one")
  assert stat.S_IMODE(new.stat().st_mode) == 0o600
  assert old.read_bytes() == content
  with pytest.raises(ledger.LedgerError, match="`out`"):
    ledger.upgrade(old, new, max_epsilon=2.0)
  with pytest.raises(ledger.LedgerError, match="nothing to upgrade"):
    ledger.upgrade(new, tmp_path / "newer", max_epsilon=2.0)
  old.write_bytes(content.replace(b"0.8", b"0.1"))
  with pytest.raises(ledger.LedgerError, match=r"line 1 .* damaged"):
    ledger.upgrade(old, tmp_path / "newer", max_epsilon=2.0)


@pytest.mark.parametrize(
  "content",
  [
    b"private",
    b"\x89PNG\r\n\x1a\n\0",
    b"{}\n",
    b"\0\0",
    65 * b"a",
    64 * b"a" + b" x",
  ],
)
def test_a_file_that_is_no_ledger_is_left_as_it_is(path, content):
  path.write_bytes(content)
  with pytest.raises(ledger.LedgerError, match=r"not a ledger|damaged"):
    _read(path)
  assert path.read_bytes() == content


def test_a_pipe_is_refused(tmp_path):
  path = tmp_path / "pipe"
  os.mkfifo(path)
  with pytest.raises(ledger.LedgerError, match="not a file"):
    _read(path)


def test_the_folder_is_synced_by_whoever_comes_second(path, monkeypatch):
  folders = []
  monkeypatch.setattr(ledger.files, "sync", folders.append)
  _read(path)
  assert folders == [path.parent]


def test_a_newer_version_is_refused(path):
  fields = json.loads(path.read_bytes()[65:])
  path.write_bytes(_line({**fields, "version": 3}))
  with pytest.raises(ledger.LedgerError, match="version 3"):
    ledger.read(path)


def test_a_second_reader_waits_for_the_first_and_says_so(path, caplog):
  inside, entries = threading.Event(), []

  def second():
    inside.wait(10)
    entries.extend(_read(path))

  with concurrent.futures.ThreadPoolExecutor() as threads:
    with ledger.locked(path) as book:
      waiting = threads.submit(second)
      inside.set()
      with pytest.raises(concurrent.futures.TimeoutError):
        waiting.result(timeout=0.3)
      assert "waiting" in caplog.text
      book.append(_entry())
    waiting.result(timeout=10)
  assert entries == [_entry()]


def test_a_ledger_on_a_file_system_without_locks_is_refused(path, monkeypatch):
  def flock(file, kind):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with pytest.raises(
    ledger.LedgerError, match=rf"`ledger`: {path}: its .*overspend"
  ):
    ledger.read(path)


@pytest.mark.parametrize("there", [True, False])
def test_an_answer_is_not_written_to_a_ledger_that_was_replaced(path, there):
  """As a copy is restored while somebody is asked for consent."""
  copy = path.with_name("copy")
  copy.write_bytes(path.read_bytes())
  with ledger.locked(path) as book:
    copy.replace(path) if there else path.unlink()
    with pytest.raises(ledger.LedgerError, match="replaced or deleted"):
      book.append(_entry())
  if there:
    _write(path, _entry())
    assert _read(path) == [_entry()]


def test_who_waits_for_a_ledger_that_is_replaced_does_not_use_the_old_one(path):
  copy = path.with_name("copy")
  copy.write_bytes(path.read_bytes())
  with concurrent.futures.ThreadPoolExecutor() as threads:
    with ledger.locked(path):
      waiting = threads.submit(_write, path, _entry())
      with pytest.raises(concurrent.futures.TimeoutError):
        waiting.result(timeout=0.3)
      copy.replace(path)
    with pytest.raises(ledger.LedgerError, match="replaced or deleted"):
      waiting.result(timeout=10)
  assert _read(path) == []


def test_an_entry_is_on_the_disk_before_append_returns(path, monkeypatch):
  synced = []
  monkeypatch.setattr(
    ledger.os, "fsync", lambda descriptor: synced.append(path.read_bytes())
  )
  with ledger.locked(path) as book:
    book.append(_entry())
  assert synced[-1] == path.read_bytes() != b""

import concurrent.futures
import dataclasses
import json
import os
import stat
import threading

import pytest

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger

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
  return tmp_path / "ledger.jsonl"


def _write(path, *entries):
  with ledger.locked(path) as book:
    for entry in entries:
      book.append(entry)


def _read(path):
  with ledger.locked(path) as book:
    return book.entries


def test_entries_come_back_as_they_went_in(path):
  entries = [_entry(), _entry(query="q2", sigma=20.5)]
  _write(path, entries[0])
  _write(path, entries[1])
  assert _read(path) == entries
  assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_names_in_the_file_are_those_of_version_1(path):
  _write(path, _entry())
  fields = json.loads(path.read_bytes().partition(b" ")[2])
  assert fields == {
    "version": 1,
    "time": "2026-01-02T03:04:05+00:00",
    "data": "mine",
    "query_digest": "q1",
    "terms": {**FIELDS, "sigma": 10.0},
    "epsilon": 0.276049,
    "cost": [{"sigma": 10.0, "gamma": 0.8, "moved": 1, "times": 1}],
    "response": "AAFhbnN3ZXL/",
  }


def test_answers_of_one_cost_are_composed_whatever_their_data(path):
  _write(path, *(_entry(query=q, data=q) for q in ("q1", "q2", "q3")))
  with ledger.locked(path) as book:
    total = book.epsilon(TERMS)
    assert total == accounting.Cost.total(3 * [_cost(10.0)], 1e-5, "add_remove")
    assert book.epsilon(TERMS, _cost(10.0)) > total
  alone = _cost(10.0).epsilon(1e-5, "add_remove")
  assert alone < total < 3 * alone


def test_the_strictest_delta_and_relation_count_ever_after(path):
  strict = _entry(query="q2")
  strict.terms.update(delta=1e-7, relation="replace_one")
  _write(path, _entry(), strict)
  costs = [_cost(10.0), _cost(10.0)]
  with ledger.locked(path) as book:
    assert book.guarantee(TERMS) == (1e-7, "replace_one")
    expected = accounting.Cost.total(costs, 1e-7, "replace_one")
    assert book.epsilon(TERMS) == expected
    other = messages.Terms(5.0, 0.8, 1e-8, "add_remove")
    assert book.guarantee(other) == (1e-8, "replace_one")
    # Nothing is proven for labels there.
    votes = accounting.Cost((accounting.Release(9.0, 0.1, bins=2),))
    with pytest.raises(errors.EcosError, match="ledgers"):
      book.epsilon(TERMS, votes)


def test_only_the_very_same_question_finds_the_stored_answer(path):
  _write(path, _entry())
  with ledger.locked(path) as book:
    assert book.find("q1", "mine", FIELDS) == _entry()
    assert book.find("q2", "mine", FIELDS) is None
    assert book.find("q1", "other", FIELDS) is None
    for change in ({"sigma": 11.0}, {"relation": "replace_one"}):
      assert book.find("q1", "mine", {**FIELDS, **change}) is None


def test_an_empty_ledger_costs_nothing(path):
  with ledger.locked(path) as book:
    assert book.entries == []
    assert book.epsilon(TERMS) == 0.0


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


@pytest.mark.parametrize("line", [0, 1])
def test_damage_is_refused(path, line):
  _write(path, _entry(), _entry(query="q2"))
  lines = path.read_bytes().splitlines(keepends=True)
  lines[line] = lines[line].replace(b"0.8", b"0.1")
  damaged = b"".join(lines)
  path.write_bytes(damaged)
  with pytest.raises(ledger.LedgerError, match=f"line {line + 1} .* damaged"):
    _read(path)
  assert path.read_bytes() == damaged


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


def test_a_pipe_is_refused(path):
  os.mkfifo(path)
  with pytest.raises(ledger.LedgerError, match="not a file"):
    _read(path)


def test_the_folder_is_synced_by_whoever_comes_second(path, monkeypatch):
  path.touch()
  folders = []
  monkeypatch.setattr(ledger.files, "sync", folders.append)
  _read(path)
  assert folders == [path.parent]


def test_a_newer_version_is_refused(path, monkeypatch):
  monkeypatch.setattr(ledger, "VERSION", 2)
  _write(path, _entry())
  monkeypatch.setattr(ledger, "VERSION", 1)
  with pytest.raises(ledger.LedgerError, match="version 2"):
    _read(path)


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


def test_an_entry_is_on_the_disk_before_append_returns(path, monkeypatch):
  synced = []
  monkeypatch.setattr(
    ledger.os, "fsync", lambda descriptor: synced.append(path.read_bytes())
  )
  with ledger.locked(path) as book:
    book.append(_entry())
  assert synced[-1] == path.read_bytes() != b""

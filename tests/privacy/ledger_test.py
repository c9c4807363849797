import concurrent.futures
import stat
import threading

import pytest

from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger

TERMS = {"sigma": 10.0, "gamma": 0.8, "delta": 1e-5, "relation": "add_remove"}


def _entry(query="q1", data="mine", sigma=10.0, response=b"\0\1answer\xff"):
  return ledger.Entry(
    time="2026-01-02T03:04:05+00:00",
    data=data,
    query_digest=query,
    terms={**TERMS, "sigma": sigma},
    epsilon=0.276049,
    cost=accounting.Cost((accounting.Release(sigma, 0.8),)),
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


def test_the_cost_is_composed_and_not_added(path):
  _write(path, _entry(), _entry(query="q2", data="other", sigma=20.0))
  with ledger.locked(path) as book:
    total = book.cost.epsilon(1e-5, "add_remove")
  releases = (accounting.Release(10.0, 0.8), accounting.Release(20.0, 0.8))
  assert total == accounting.Cost(releases).epsilon(1e-5, "add_remove")
  single = [accounting.Cost((r,)).epsilon(1e-5, "add_remove") for r in releases]
  assert max(single) < total < sum(single)


def test_only_the_very_same_question_finds_the_stored_answer(path):
  _write(path, _entry())
  with ledger.locked(path) as book:
    assert book.find("q1", "mine", TERMS) == b"\0\1answer\xff"
    assert book.find("q2", "mine", TERMS) is None
    assert book.find("q1", "other", TERMS) is None
    assert book.find("q1", "mine", {**TERMS, "sigma": 11.0}) is None
    assert book.find("q1", "mine", {**TERMS, "relation": "replace_one"}) is None


def test_an_empty_ledger_costs_nothing(path):
  with ledger.locked(path) as book:
    assert book.entries == []
    assert book.cost.epsilon(1e-5, "replace_one") == 0.0


def test_a_cut_off_last_line_is_reported_and_removed(path, caplog):
  _write(path, _entry())
  first = path.read_bytes()
  _write(path, _entry(query="q2"))
  whole = path.read_bytes()
  for size in range(len(first) + 1, len(whole) - 1, 29):
    path.write_bytes(whole[:size])
    caplog.clear()
    assert _read(path) == [_entry()]
    assert "cut off" in caplog.text
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


def test_a_newer_version_is_refused(path, monkeypatch):
  monkeypatch.setattr(ledger, "VERSION", 2)
  _write(path, _entry())
  monkeypatch.setattr(ledger, "VERSION", 1)
  with pytest.raises(ledger.LedgerError, match="version 2"):
    _read(path)


def test_a_second_reader_waits_for_the_first(path):
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

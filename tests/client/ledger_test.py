import dataclasses
import math

import pytest

from ecos_jax import messages
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from tests.privacy import version_1

TERMS = messages.Terms(10.0, 0.8, 1e-5, "add_remove")


def _entry(sigma, **changes):
  cost = accounting.Cost((accounting.Release(sigma, 0.8),))
  entry = ledger.Entry(
    time="2026-01-02T03:04:05+00:00",
    data="folder:/x\n\x1b[2J",
    query_digest="ab" * 32,
    terms=dataclasses.asdict(TERMS),
    epsilon=cost.epsilon(1e-5, "add_remove"),
    cost=cost,
    response=b"",
  )
  return dataclasses.replace(entry, **changes)


@pytest.fixture(name="path")
def _path(tmp_path):
  """A ledger with a budget of 2, scores twice, and labels."""
  path = tmp_path / "ledger"
  ledger.create(path, max_epsilon=2.0)
  votes = accounting.Cost(
    (
      accounting.Release(53.0, 0.1, times=20),
      accounting.Release(25.0, 0.1, bins=2, times=7),
    )
  )
  with ledger.locked(path) as book:
    book.append(_entry(10.0))
    book.append(_entry(12.0))
    terms = dataclasses.asdict(TERMS) | {"neighbours": 5}
    book.append(_entry(9.0, cost=votes, epsilon=0.5, terms=terms))
  return path


@pytest.fixture(name="run")
def _run(start_job):
  def run(*arguments):
    job = start_job(*arguments, module="ecos_jax.client.ledger")
    return job.wait(), job

  return run


def test_show_tells_who_asked_what_when_and_what_is_left(run, path):
  before = path.read_bytes()
  code, job = run("show", f"--ledger={path}")
  assert code == 0, job.err
  head, titles, *rows, spent = job.out.splitlines()
  assert "epsilon 2 (delta 1e-05, add_remove, by sample)" in head
  assert titles.split() == [
    "time",
    "data",
    "question",
    "kind",
    "noise",
    "epsilon",
    "total",
  ]
  assert len(rows) == 3
  assert "\x1b" not in job.out
  first, _, labels = rows
  for part in ("2026-01-02T03:04:05", "folder:/x??[2J", "abababab", "scores"):
    assert part in first
  assert first.split()[-2:] == ["0.276", "0.276"]
  assert "53 x 20, 25 x 7" in labels and "labels" in labels
  total = ledger.read(path).epsilon()
  assert labels.split()[-1] == f"{total:.4g}"
  assert f"epsilon {total:.6g}, " in spent
  assert f"{2 - total:.6g} is left" in spent
  assert path.read_bytes() == before


def test_verify_fails_on_what_is_not_whole(run, path):
  code, job = run("verify", f"--ledger={path}")
  assert code == 0 and "all 3 answers" in job.out
  whole = path.read_bytes()
  lines = whole.splitlines(keepends=True)
  for content, said in (
    (b"".join([*lines[:1], *lines[2:]]), "line 2 .* missing or moved"),
    (whole.replace(b"12.0", b"99.0"), "line 3 .* damaged"),
    (whole[:-20], "the last line of .* is incomplete"),
  ):
    path.write_bytes(content)
    code, job = run("verify", f"--ledger={path}")
    assert code == 1
    (line,) = job.err.splitlines()
    assert line.startswith("error: --ledger: ")
    assert all(part in line for part in said.split(" .* "))
    assert path.read_bytes() == content


def test_create_makes_one_and_says_what_it_promises(run, tmp_path):
  path = tmp_path / "new"
  flag = f"--ledger={path}"
  code, job = run("create", flag)
  assert code == 1 and "--max_epsilon" in job.err
  assert not path.exists()
  code, job = run("create", flag, "--max_epsilon=inf", "--relation=replace_one")
  assert code == 0 and "no limit of epsilon" in job.out
  guarantee = ledger.read(path).guarantee
  assert (guarantee.max_epsilon, guarantee.delta) == (math.inf, 1e-5)
  assert guarantee.relation == "replace_one"


@pytest.mark.parametrize("arguments", [(), ("look",), ("show", "verify")])
def test_without_one_action_all_are_named(run, path, arguments):
  code, job = run(*arguments, f"--ledger={path}")
  assert code == 1
  assert "create, show, upgrade, verify" in job.err


def test_upgrade_takes_a_ledger_of_version_1_over(run, tmp_path):
  old, new = tmp_path / "old", tmp_path / "new"
  old.write_bytes(version_1.ledger(_entry(10.0), _entry(5.0)))
  flag = f"--ledger={old}"
  code, job = run("show", flag)
  assert code == 1 and "client.ledger upgrade" in job.err
  code, job = run("upgrade", flag, "--max_epsilon=2")
  assert code == 1 and "--out" in job.err
  code, job = run("upgrade", flag, f"--out={new}", "--max_epsilon=2")
  assert code == 0, job.err
  assert "2 answers" in job.out and "is left" in job.out
  assert len(ledger.read(new).entries) == 2

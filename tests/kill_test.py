"""Killed 40 times at random moments of all stages, it ends the same.

A job is killed again and again, and goes on each time with what is there, until
it has been killed in every stage; then it runs to its end. All its files are
compared with those of a job that nobody killed.
"""

import base64
import dataclasses
import json
import random
import shutil
import signal
import time

import pytest

from ecos_jax import messages

# Kills in each stage, the longer ones more often.
_KILLS = {
  "manual": {
    **{"pool": 2, "bank": 4, "codebook": 4, "query": 1, "response": 2},
    **{"proxy": 4, "model": 7},
  },
  "client": {"bank": 1, "proxy": 1, "request": 1, "labels": 4},
  "distill": {"teacher": 4, "logits": 2, "model": 3},
}
_MEASURED = ("seconds", "training", "input_wait_share", "images_per_second")


def test_forty_kills():
  assert sum(sum(kills.values()) for kills in _KILLS.values()) == 40


def _kill(start_job, flags, before, seconds):
  """Kills the job some seconds after the stage `before` is done."""
  job = start_job(*flags)
  if before:
    job.wait_for(before)
  time.sleep(seconds)
  job.signal(signal.SIGKILL)
  return job.wait()


@pytest.mark.slow
@pytest.mark.parametrize("task", list(_KILLS))
def test_killed_it_ends_the_same(
  task, finished_job, start_job, job_flags, tmp_path
):
  expected, path = finished_job(task), tmp_path / "killed"
  # Once more, with all that is compiled: so long it takes.
  again = start_job(*job_flags(task, tmp_path / "again"))
  assert again.wait() == 0, again.err
  _compare(expected, tmp_path / "again")
  summary = json.loads((tmp_path / "again" / "summary.json").read_bytes())
  seconds = summary["seconds"]
  order = [None, *seconds]
  flags, rng, hit = job_flags(task, path), random.Random(task), set()
  for stage, kills in _KILLS[task].items():
    before = order[order.index(stage) - 1]
    for _ in range(kills):
      moment = rng.uniform(0, seconds[stage])
      while True:
        code = _kill(start_job, flags, before, moment)
        late = (path / stage / "manifest.json").exists()
        # Some stages take a millisecond, and cannot be hit.
        if code == -signal.SIGKILL and (not late or moment < 1e-3):
          break
        # It was faster than the other run: the stage once more.
        assert late
        shutil.rmtree(path / stage)
        moment /= 2
      done = [
        name for name in seconds if (path / name / "manifest.json").exists()
      ]
      hit.add(len(done))
  assert len(hit) >= len(_KILLS[task]) - 2
  job = start_job(*flags)
  assert job.wait() == 0, job.err
  _compare(expected, path)


def _compare(expected, path):
  files = {
    folder: {
      file.relative_to(folder)
      for file in folder.rglob("*")
      if file.is_file() and not _apart(file)
    }
    for folder in (expected, path)
  }
  assert files[path] == files[expected]
  for name in files[path]:
    ours, theirs = path / name, expected / name
    if name.name in ("manifest.json", "summary.json"):
      assert _unmeasured(ours) == _unmeasured(theirs), name
    elif name.name == "ledger":
      # The answers, none twice, but for the time and the checksums.
      assert _answers(ours) == _answers(theirs)
    else:
      assert ours.read_bytes() == theirs.read_bytes(), name
  for stage in ("teacher", "model"):
    assert _checkpoint(path / stage) == _checkpoint(expected / stage)


def _apart(file):
  # TensorBoard's files tell the time, and orbax's have random names.
  return (
    file.name == ".lock"
    or file.name.startswith("events.")
    or "checkpoints" in file.parts
  )


def _unmeasured(file):
  def drop(value):
    if not isinstance(value, dict):
      return value
    return {k: drop(v) for k, v in value.items() if k not in _MEASURED}

  return drop(json.loads(file.read_bytes()))


def _answers(file):
  entries = [
    json.loads(line.partition(" ")[2]) for line in file.read_text().splitlines()
  ]
  # Each ledger has a random id, and says it in its responses to queries.
  own = {"time": None, "previous": None, "client": None}
  return [
    entry | own | {"response": _without_id(entry.get("response"))}
    for entry in entries
  ]


def _without_id(response):
  data = base64.b64decode(response or "")
  try:
    response = messages.Response.from_bytes(data)
  except messages.ProtocolError:  # labels, or no answer
    return data
  return dataclasses.replace(response, client="0" * 32).to_bytes()


def _checkpoint(stage):
  """Returns the last checkpoint's digest of the arrays, and its record."""
  steps = [int(entry.name) for entry in (stage / "checkpoints").glob("*")]
  if not steps:
    return None
  [file] = (stage / "checkpoints" / str(max(steps)) / "record").glob("metadata")
  return max(steps), json.loads(file.read_bytes())

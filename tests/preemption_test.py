"""SIGTERM in each stage: exit code 75 at once, and the next call goes on."""

import json
import time

import pytest

# Where the signal comes: in a stage, while it calls a function; each case goes
# on with what the one before has left.
_MANUAL = (
  ("pool", "data.digits_made:mnist_m"),
  ("bank", "encoders.registry:encode"),
  ("codebook", "clustering.kmeans:fit"),
  ("codebook", "clustering.assign:stream"),
  ("query", "cloud.query:make"),
  ("response", "client.coverage:nearest"),
  ("proxy", "cloud.sampling:decompress"),
  ("proxy", "data.proxy:write"),
  ("model", "training.checkpoints:Checkpoints"),
  ("model", "training.loop:accuracy"),
)
_CLIENT = (
  ("request", "cloud.labels:request"),
  ("labels", "client.label:label"),
)
_DISTILL = (
  ("teacher", "training.checkpoints:Checkpoints"),
  ("teacher", "training.loop:accuracy"),
  ("logits", "pipeline.distillation:_finished_teacher"),
)
_CASES = [("manual", *case) for case in _MANUAL]
_CASES += [("client", *case) for case in _CLIENT]
_CASES += [("distill", *case) for case in _DISTILL]
# These are given time to keep what they have; all others may be in native code
# that takes long to return.
_SAVING = "encoders.registry:encode", "training.checkpoints:Checkpoints"


@pytest.fixture(scope="module")
def run(start_job, job_flags, tmp_path_factory):
  """Runs a task in its folder; returns the folder, the exit code, stderr."""
  root = tmp_path_factory.mktemp("preempted")

  def run(task, patched=None):
    job = start_job(
      *job_flags(task, root / task),
      "--config.distill.teacher_steps=8",
      "--config.train.steps=8",
      "--config.train.checkpoint_every=100",
      patched=patched,
    )
    return root / task, job.wait(), job.err

  return run


@pytest.mark.slow
@pytest.mark.parametrize("task, stage, busy", _CASES)
def test_sigterm_in_a_stage(task, stage, busy, run):
  begin = time.monotonic()
  seconds = 0 if busy in _SAVING else 60
  path, code, err = run(task, (f"ecos_jax.{busy}", seconds))
  assert time.monotonic() - begin < 30
  assert code == 75, err
  assert err.splitlines()[-1].startswith("stopped on SIGTERM")
  assert "Traceback" not in err
  assert (path / stage / "started.json").exists()
  assert not (path / stage / "manifest.json").exists()
  if stage == "bank":
    assert (path / "bank" / "shard-000000.json").exists()
  if busy == "training.checkpoints:Checkpoints":
    [checkpoint] = (path / stage / "checkpoints").iterdir()
    assert 0 < int(checkpoint.name) < 8


@pytest.mark.slow
@pytest.mark.parametrize("task", ["manual", "client", "distill"])
def test_then_it_ends(task, run):
  path, code, err = run(task)
  assert code == 0, err
  assert json.loads((path / "summary.json").read_bytes())["model"]

"""SIGTERM in each stage: exit code 75 at once, and the next call goes on."""

import json
import signal
import time

import pytest

# Where the signal comes: in a stage, while it calls a function; each case goes
# on with what the one before has left.
_MANUAL = (
  ("pool", "data.digits_made:mnist_m"),
  ("bank", "encoders.registry:encode"),
  ("codebook", "clustering.kmeans:fit"),
  ("codebook", "clustering.assign:stream"),
  ("query", "cloud.question:make"),
  ("response", "client.coverage:nearest"),
  ("proxy", "cloud.sampling:decompress"),
  ("proxy", "data.proxy:write"),
  ("model", "training.checkpoints:Checkpoints"),
  ("model", "training.evaluation:accuracy"),
)
_CLIENT = (
  ("request", "cloud.labels:request"),
  ("labels", "client.private_knn:label"),
)
_DISTILL = (
  ("teacher", "training.checkpoints:Checkpoints"),
  ("teacher", "training.evaluation:accuracy"),
  ("logits", "pipeline.distillation:finished_teacher"),
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


@pytest.mark.slow
def test_in_training_with_nothing_compiled_before(
  start_job, job_flags, tmp_path
):
  """The checkpoint of the signal is the only one, and the next call's start."""
  flags = job_flags("manual", tmp_path)
  flags += (
    "--config.train.steps=20000",
    "--config.train.checkpoint_every=100000",
  )
  metrics = tmp_path / "model" / "metrics.jsonl"

  def stopped_after(step):
    job = start_job(*flags, JAX_COMPILATION_CACHE_DIR="/dev/null")
    row = f'{{"step": {step},'
    job.wait_until(lambda: metrics.exists() and row in metrics.read_text())
    job.signal(signal.SIGTERM)
    begin = time.monotonic()
    assert job.wait() == 75, job.err
    assert time.monotonic() - begin < 30
    checkpoints = (tmp_path / "model" / "checkpoints").iterdir()
    return max(int(checkpoint.name) for checkpoint in checkpoints)

  first = stopped_after(50)
  assert 50 <= first < 20000
  # A call that began anew would drop this row.
  marked = metrics.read_text().replace('"step": 50,', '"step": 50, "mark": 1,')
  metrics.write_text(marked)
  second = stopped_after(first + 50 - first % 5)
  assert first < second < 20000
  assert metrics.read_text().startswith(marked)

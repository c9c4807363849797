"""The command as a person runs it: kills, failures, resumption."""

import json
import os
from pathlib import Path
import signal
import sys
import time

import numpy as np
import pytest

from configs import digits_manual
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import pipeline
from ecos_jax.study import plan
from ecos_jax.study import run

_ROOT = Path(__file__).parents[2]
_BASE = f"{_ROOT / 'configs/digits_manual.py'}:smoke"
# Two trials of each method fail: the pool is not that large.
_STUDY = f"""
from ecos_jax.study import plan

def get_config(argument=""):
  study = plan.of(
    {_BASE!r},
    name="small",
    title="Small",
    grids=(
      {{
        "sampling.method": ("random", "ecos"),
        "sampling.budget": (32, 99999, 48),
        "seed": (1,),
      }},
    ),
    tables=(
      plan.Table(
        "Share",
        rows=("sampling.method",),
        columns="sampling.budget",
        metrics=("share",),
      ),
    ),
  )
  study.train.steps = 0
  return study
"""


@pytest.fixture
def start(start_job, tmp_path):
  """Returns a function that starts the study in `tmp_path`."""
  (tmp_path / "small.py").write_text(_STUDY)
  standard = (
    *("--workers=1", f"--config={tmp_path / 'small.py'}"),
    f"--workdir={tmp_path / 'w'}",
  )
  return lambda *flags: start_job(*standard, *flags, module="ecos_jax.study")


def _children(pid: int) -> list[int]:
  tasks = Path(f"/proc/{pid}/task").glob("*/children")
  return [int(child) for task in tasks for child in task.read_text().split()]


def _alive(pid: int) -> bool:
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except OSError:
    return False
  return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_killed_at_any_time_it_goes_on_and_failures_are_kept(start, tmp_path):
  trials = tmp_path / "w" / "trials"
  # The study dies, and takes its child along.
  job = start()
  first = trials / "method=random,budget=32,seed=1" / run.ROW
  job.wait_until(first.exists)
  [child] = _children(job.pid)
  job.signal(signal.SIGKILL)
  assert job.wait() == -signal.SIGKILL
  deadline = time.monotonic() + 20
  while _alive(child) and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not _alive(child)
  made = first.stat().st_mtime_ns

  # The child dies in a trial: the others go on.
  job = start()
  job.wait_until((trials / "method=ecos,budget=32,seed=1/pool").exists)
  [child] = _children(job.pid)
  os.kill(child, signal.SIGKILL)
  assert job.wait() == 1
  assert "3 of 6 trials failed" in job.err.splitlines()[-1]
  assert "Traceback" not in job.err
  assert "worker process ended with signal 9" in job.out
  assert "is larger than the pool" in job.out
  assert first.stat().st_mtime_ns == made

  # Only what is left is run; what fails by itself fails again.
  document = tmp_path / "document.md"
  job = start(f"--out={document}")
  assert job.wait() == 1
  assert "2 of 6 trials failed" in job.err.splitlines()[-1]
  assert first.stat().st_mtime_ns == made
  results = (tmp_path / "w" / "results.md").read_text()
  assert "signal 9" not in results
  assert results in document.read_text()
  assert "4 of 6 trials" in results
  assert "--config.sampling.budget=99999 is larger than the pool" in results
  [alone] = [
    line.strip()
    for line in results.splitlines()
    if "ecos_jax.train" in line and "method=random" in line
  ]
  assert "--config.sampling.budget=99999" in alone
  job = start("--list")
  assert job.wait() == 0
  assert "6 trials: 4 done, 2 failed, 0 left" in job.out

  # A trial is what a run alone gives.
  rows = json.loads((tmp_path / "w" / "rows.json").read_bytes())
  config = digits_manual.get_config("smoke")
  config.privacy.insecure_noise_seed = 1
  config.sampling.budget = 48
  config.train.steps = 0
  alone = pipeline.run(config, tmp_path / "alone")
  [row] = [r for r in rows if r["name"] == "method=ecos,budget=48,seed=1"]
  folders = trials / row["name"], tmp_path / "alone"
  np.testing.assert_array_equal(
    *(np.load(path / "proxy/indices.npy") for path in folders)
  )
  for summary in (alone, row["summary"]):
    del summary["seconds"]
  assert row["summary"] == json.loads(json.dumps(alone))


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--trials=nothing*", "--trials=nothing*"),
    (
      f"--config={_ROOT / 'configs/digits_manual.py'}",
      "ecos_jax.study.plan.Study, got Config",
    ),
    ("--config.sampling.bugdet=3", "sampling.bugdet"),
    ("--config=nowhere.py", "nowhere.py"),
  ],
)
def test_bad_input_gets_one_line(flag, said, start):
  job = start(flag)
  assert job.wait() == 1
  [line] = job.err.splitlines()
  assert line.startswith("error: ") and said in line


def _trials(**axes) -> list[plan.Trial]:
  return plan.of(_BASE, grids=(axes,)).trials()


def test_a_trial_done_otherwise_is_refused_and_the_difference_named(tmp_path):
  [trial] = _trials(seed=(1,))
  folder = run.folder(tmp_path, trial)
  folder.mkdir(parents=True)
  assert run.row(tmp_path, trial) is None
  fields = json.loads(json.dumps(config_lib.flatten(trial.config)))
  (folder / run.ROW).write_text(json.dumps({"config": fields}))
  assert run.row(tmp_path, trial) == {"config": fields}
  other = fields | {"train.steps": 3}
  (folder / run.ROW).write_text(json.dumps({"config": other}))
  with pytest.raises(
    errors.ConfigError, match=r"train\.steps` was 3, now is 20"
  ):
    run.row(tmp_path, trial)
  (folder / run.ROW).write_text("{")
  with pytest.raises(errors.EcosError, match="is damaged"):
    run.row(tmp_path, trial)


def test_a_child_stays_with_its_data_and_away_from_those_of_others():
  trials = _trials(**{"seed": (1, 2, 3), "sampling.budget": (8, 16)})
  todo = run._Todo(trials)
  taken = [todo.take(number) for number in (0, 1, 0, 1, 1, 0)]
  assert [trial.config.seed for trial in taken] == [1, 2, 1, 2, 3, 3]
  assert todo.take(0) is None

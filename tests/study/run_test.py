"""The command as a person runs it: kills, failures, resumption."""

import json
import os
from pathlib import Path
import signal
import subprocess
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
# Two cells of each method fail: the pool is not that large.
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
    follow={{"privacy.insecure_noise_seed": "seed"}},
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


def _start(folder: Path, *flags: str) -> subprocess.Popen:
  (folder / "small.py").write_text(_STUDY)
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "ecos_jax.study", "--workers=1"),
      *(f"--config={folder / 'small.py'}", f"--workdir={folder / 'w'}", *flags),
    ],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _run(folder: Path, *flags: str) -> tuple[int, str, str]:
  with _start(folder, *flags) as process:
    out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def _wait_for(path: Path, process: subprocess.Popen) -> None:
  deadline = time.monotonic() + 240
  while not path.exists():
    if process.poll() is not None or time.monotonic() > deadline:
      process.kill()
      raise AssertionError(f"{path} did not come: {process.communicate()}")
    time.sleep(0.005)


def _children(process: subprocess.Popen) -> list[int]:
  tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
  return [int(child) for task in tasks for child in task.read_text().split()]


def _alive(pid: int) -> bool:
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except OSError:
    return False
  return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_killed_at_any_time_it_goes_on_and_failures_are_kept(tmp_path):
  cells = tmp_path / "w" / "cells"
  # The study dies, and takes its worker along.
  with _start(tmp_path) as process:
    _wait_for(cells / "method=random,budget=32,seed=1" / run.ROW, process)
    workers = _children(process)
    process.kill()
  assert len(workers) == 1
  deadline = time.monotonic() + 20
  while _alive(workers[0]) and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not _alive(workers[0])
  first = cells / "method=random,budget=32,seed=1" / run.ROW
  made = first.stat().st_mtime_ns

  # The worker dies in a cell: the others go on.
  with _start(tmp_path) as process:
    _wait_for(cells / "method=ecos,budget=32,seed=1" / "pool", process)
    [worker] = _children(process)
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
  assert process.returncode == 1
  assert "3 of 6 cells failed" in err.splitlines()[-1]
  assert "Traceback" not in err
  assert "worker process ended with signal 9" in out
  assert "is larger than the pool" in out
  assert first.stat().st_mtime_ns == made

  # Only what is left is run; what fails by itself fails again.
  code, out, err = _run(tmp_path)
  assert code == 1
  assert "2 of 6 cells failed" in err.splitlines()[-1]
  assert first.stat().st_mtime_ns == made
  results = (tmp_path / "w" / "results.md").read_text()
  assert "signal 9" not in results
  assert "4 of 6 cells" in results
  assert "--config.sampling.budget=99999 is larger than the pool" in results
  [lone] = [
    line.strip()
    for line in results.splitlines()
    if "ecos_jax.train" in line and "method=random" in line
  ]
  assert "--config.sampling.budget=99999" in lone
  code, out, _ = _run(tmp_path, "--list")
  assert code == 0
  assert "6 cells: 4 done, 2 failed, 0 left" in out

  # A cell is what a run alone gives.
  rows = json.loads((tmp_path / "w" / "rows.json").read_bytes())
  config = digits_manual.get_config("smoke")
  config.privacy.insecure_noise_seed = 1
  config.sampling.budget = 48
  config.train.steps = 0
  alone = pipeline.run(config, tmp_path / "alone")
  [row] = [r for r in rows if r["name"] == "method=ecos,budget=48,seed=1"]
  cell = cells / row["name"]
  np.testing.assert_array_equal(
    *(
      np.load(path / "proxy/indices.npy") for path in (cell, tmp_path / "alone")
    )
  )
  for summary in (alone, row["summary"]):
    del summary["seconds"]
  assert row["summary"] == json.loads(json.dumps(alone))


@pytest.mark.slow
def test_bad_input_gets_one_line(tmp_path):
  train = _ROOT / "configs/digits_manual.py"
  for flags, said in (
    (["--cells=nothing*"], "--cells=nothing*"),
    ([f"--config={train}"], "ecos_jax.study.plan.Study, got Config"),
    (["--config.sampling.bugdet=3"], "sampling.bugdet"),
    (["--config=nowhere.py"], "nowhere.py"),
  ):
    code, _, err = _run(tmp_path, *flags)
    assert code == 1
    assert "Traceback" not in err
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said in line


def _cells(**axes) -> list[plan.Cell]:
  return plan.of(_BASE, grids=(axes,)).cells()


def test_a_cell_done_otherwise_is_refused_and_the_difference_named(tmp_path):
  [cell] = _cells(seed=(1,))
  folder = run.folder(tmp_path, cell)
  folder.mkdir(parents=True)
  assert run.row(tmp_path, cell) is None
  fields = json.loads(json.dumps(config_lib.flatten(cell.config)))
  (folder / run.ROW).write_text(json.dumps({"config": fields}))
  assert run.row(tmp_path, cell) == {"config": fields}
  other = fields | {"train.steps": 3}
  (folder / run.ROW).write_text(json.dumps({"config": other}))
  with pytest.raises(
    errors.ConfigError, match=r"train\.steps was 3, now is 20"
  ):
    run.row(tmp_path, cell)
  (folder / run.ROW).write_text("{")
  with pytest.raises(errors.EcosError, match="is damaged"):
    run.row(tmp_path, cell)


def test_a_worker_stays_with_its_data_and_away_from_those_of_others():
  cells = _cells(**{"seed": (1, 2, 3), "sampling.budget": (8, 16)})
  todo = run._Todo(cells)
  taken = [todo.take(number) for number in (0, 1, 0, 1, 1, 0)]
  assert [cell.config.seed for cell in taken] == [1, 2, 1, 2, 3, 3]
  assert todo.take(0) is None


def test_the_estimate_is_the_time_of_cells_of_the_same_method():
  cells = _cells(
    **{"sampling.method": ("ecos", "random"), "sampling.budget": (8, 9, 10)}
  )
  estimate = run._Estimate(cells, workers=2)
  assert estimate.text() == "?"
  ecos = [c for c in cells if "ecos" in c.name]
  random = [c for c in cells if "random" in c.name]
  estimate.add(ecos[0], 30)
  # Of the others the mean is all that is known.
  assert estimate.text() == "75 s"
  estimate.add(random[0], 10)
  estimate.add(ecos[1], None)
  # 30 + 10 + 10 on two workers.
  assert estimate.text() == "25 s"

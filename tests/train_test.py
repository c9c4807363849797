"""The command as a person runs it: exit codes, one-line errors, kills."""

import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import pytest

_ROOT = Path(__file__).parents[1]
_SMOKE = "--config=configs/digits_manual.py:smoke"


def _start(*flags, python=()) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, *python, "-m", "ecos_jax.train", *map(str, flags)],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    ((_SMOKE, "--config.sampling.bugdet=3"), "sampling.budget"),
    ((_SMOKE, "--config.sampling.method=best"), "kcenter"),
    ((_SMOKE, "--config.sampling.budget=0"), "--config.sampling.budget"),
    ((_SMOKE, "--config.data.dir=nowhere"), "--config.data.dir"),
    ((_SMOKE, "--config.encoder.name=nope"), "hog"),
    ((_SMOKE, "steps=3"), "steps=3"),
    ((_SMOKE, "--num_processes=2"), "--coordinator"),
    ((_SMOKE, "--coordinator=host:1"), "--num_processes and --process_id"),
    ((_SMOKE, "--coordinator=auto"), "--coordinator=auto"),
    (("--config=configs/nope.py",), "configs/nope.py"),
    ((), "--config"),
  ],
)
def test_bad_input_gets_one_line(flags, said, start_job, tmp_path):
  job = start_job(f"--workdir={tmp_path}", *flags)
  assert job.wait() == 1
  assert "Traceback" not in job.err
  [line] = [line for line in job.err.splitlines() if line.startswith("error: ")]
  assert said in line


def test_a_missing_workdir_is_named():
  with _start(_SMOKE) as process:
    _, err = process.communicate(timeout=300)
  assert process.returncode == 1
  [line] = err.splitlines()
  assert line.startswith("error: ") and "--workdir" in line


def test_importing_the_package_is_cheap():
  code = "import sys, ecos_jax; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)


def test_no_tensorflow_and_no_torch():
  code = (
    "import sys, ecos_jax.train, ecos_jax.client.respond\n"
    "assert not {'tensorflow', 'torch'} & sys.modules.keys()"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_sigterm_during_the_imports(tmp_path):
  """Then its exit code is that of a preemption, which starts a job again."""
  flags = (_SMOKE, f"--workdir={tmp_path}/run")
  with _start(*flags, python=("-X", "importtime")) as process:
    assert any(re.search(r"\bjax\b", line) for line in process.stderr)
    process.terminate()
    _, err = process.communicate(timeout=60)
  assert process.returncode == 75
  assert err.splitlines()[-1].startswith("stopped on SIGTERM")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_in_training_leaves_at_once_and_can_go_on(tmp_path):
  flags = (_SMOKE, f"--workdir={tmp_path}", "--config.train.steps=100000")
  with _start(*flags) as process:
    _wait_for(tmp_path / "model" / "checkpoints" / "10", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "Traceback" not in err
  assert "interrupted" in err
  assert not (tmp_path / "summary.json").exists()


def _wait_for(path: Path, process: subprocess.Popen) -> None:
  deadline = time.monotonic() + 240
  while not path.exists():
    if process.poll() is not None or time.monotonic() > deadline:
      process.kill()
      raise AssertionError(f"{path} did not come: {process.communicate()}")
    time.sleep(0.005)

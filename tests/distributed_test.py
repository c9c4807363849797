"""Several processes on this machine, which find one another by localhost."""

import dataclasses
import json
import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax import cli
from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax.cloud import codebook
from ecos_jax.cloud import encode
from ecos_jax.data import pools
from ecos_jax.encoders import registry

_ROOT = Path(__file__).parents[1]
_IMAGES = 1003
_KEY = 5
_CONFIG = config_lib.Codebook(size=12, sample_per_centroid=0, iterations=8)


class _Slow(pools.Pool):
  """Images that take their time, so that there is something to interrupt."""

  def images(self, indices, size):
    time.sleep(float(os.environ.get("SECONDS_A_BATCH", 0)))
    return super().images(indices, size)


def _pool():
  # Twelve colours, with noise: well separated.
  random = np.random.default_rng(0)
  colours = random.integers(40, 216, (12, 1, 1, 3))
  noise = random.integers(-8, 9, (_IMAGES, 4, 4, 3))
  images = (colours[random.integers(0, 12, _IMAGES)] + noise).astype(np.uint8)
  return _Slow([pools.ArraySource("colours", images, None)])


def _encoder():
  return registry.Encoder(
    "colours",
    4,
    3,
    {},
    "e" * 64,
    lambda images: jnp.mean(images.astype(jnp.float32), axis=(1, 2)),
  )


def make(folder):
  """Makes a bank and a codebook in a folder: what all processes call."""
  bank = encode.build(
    folder / "bank", _pool(), _encoder(), shard_rows=64, batch_size=32
  )
  bank.verify()
  for name in ("codebook", "second"):
    (folder / name).mkdir(exist_ok=True)
  key, mesh = jax.random.key(_KEY), distributed.mesh()
  fitted = codebook.build(folder / "codebook", bank, _CONFIG, key, mesh)
  covered = np.arange(_CONFIG.size) % 3 > 0
  codebook.build(
    folder / "second",
    bank,
    dataclasses.replace(_CONFIG, size=8, sample_per_centroid=20),
    key,
    mesh,
    codebook.Part(codebook.read(folder / "codebook"), covered),
  )
  return fitted


def _port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


@pytest.fixture
def start(start_job):
  """Returns a function that starts several processes of one command."""

  def start(count, *flags, own_flags=None, **options):
    port = _port()
    return [
      start_job(
        *flags,
        f"--coordinator=localhost:{port}",
        f"--num_processes={count}",
        f"--process_id={process}",
        "--initialization_timeout=60",
        "--heartbeat_timeout=5",
        *(own_flags[process] if own_flags else ()),
        **options,
      )
      for process in range(count)
    ]

  return start


@pytest.fixture
def makers(start):
  """Returns a function that starts processes which call `make` together."""

  def makers(out, count, seconds_a_batch=0.0, **options):
    options["SECONDS_A_BATCH"] = str(seconds_a_batch)
    module = "tests.distributed_test"
    return start(count, f"--out={out}", module=module, **options)

  return makers


def _end(jobs):
  """Returns the exit code, stdout and stderr of each."""
  return [(job.wait(), job.out, job.err) for job in jobs]


def _succeed(jobs):
  results = _end(jobs)
  for code, _, err in results:
    assert code == 0, err
  return results


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """What one process, this one, makes."""
  folder = tmp_path_factory.mktemp("one")
  return folder, make(folder)


def _same(folder, one):
  expected, _ = one
  names = sorted(path.name for path in (expected / "bank").iterdir())
  assert names == sorted(path.name for path in (folder / "bank").iterdir())
  for name in names:
    assert (folder / "bank" / name).read_bytes() == (
      expected / "bank" / name
    ).read_bytes()
  for book in ("codebook", "second"):
    got, wanted = (codebook.read(f / book) for f in (folder, expected))
    np.testing.assert_allclose(got.centroids, wanted.centroids, atol=1e-4)
    np.testing.assert_array_equal(got.sizes, wanted.sizes)
    np.testing.assert_array_equal(got.assignment, wanted.assignment)


@pytest.mark.slow
@pytest.mark.parametrize("count, devices", [(1, 8), (2, 1), (2, 3), (4, 1)])
def test_processes_together_give_the_result_of_one(
  count, devices, one, makers, tmp_path
):
  results = _succeed(makers(tmp_path, count, devices=devices))
  for process, (_, out, _) in enumerate(results):
    # Gloo writes to the same stream, from several threads at once.
    line = (
      rf"process {process} of {count} on {re.escape(socket.gethostname())}: "
      rf"{devices} of {count * devices} devices \(cpu\), coordinator "
      r"localhost:\d+$"
    )
    assert len(re.findall(line, out, re.MULTILINE)) == 1
  _same(tmp_path, one)


def _shards(folder):
  return len(list(folder.glob("bank/shard-*.json")))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim, one, makers, tmp_path):
  jobs = makers(tmp_path, 2, seconds_a_batch=0.5)
  jobs[victim].wait_until(lambda: _shards(tmp_path) >= 2)
  jobs[victim].signal(signal.SIGKILL)
  begin = time.monotonic()
  code, _, err = _end(jobs)[1 - victim]
  # The heartbeat timeout, and what it takes to start and end.
  assert time.monotonic() - begin < 5 + 10
  if victim == 1:
    assert code == 1
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "process 1 gave no sign of life" in line
    assert "start all of them again" in line
  else:
    # Without process 0 there is nobody to ask, and jax may be first to tell.
    assert code != 0
    assert "process 0 was lost" in err or "another task died" in err
  kept = _shards(tmp_path)
  assert 2 <= kept < 16
  _succeed(makers(tmp_path, 2))
  _same(tmp_path, one)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_process_ends_the_others(victim, makers, tmp_path):
  jobs = makers(tmp_path, 2, seconds_a_batch=0.5)
  jobs[victim].wait_until(lambda: _shards(tmp_path) >= 2)
  jobs[victim].signal(signal.SIGSTOP)
  begin = time.monotonic()
  code, _, err = _end([jobs[1 - victim]])[0]
  # The heartbeat timeout, and what it takes to start and end.
  assert time.monotonic() - begin < 5 + 10
  jobs[victim].signal(signal.SIGKILL)
  assert code == 1
  [line] = [line for line in err.splitlines() if line.startswith("error: ")]
  assert f"process {victim} gave no sign of life" in line


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_stops_all_and_they_go_on(told, one, makers, tmp_path):
  jobs = makers(tmp_path, 2, seconds_a_batch=0.3)
  jobs[told].wait_until(lambda: _shards(tmp_path) >= 2)
  jobs[told].signal(signal.SIGTERM)
  for code, _, err in _end(jobs):
    assert code == 75
    assert "stopped on SIGTERM" in err
    assert "Traceback" not in err
  assert not (tmp_path / "bank" / "bank.json").exists()
  assert _shards(tmp_path) < 16
  _succeed(makers(tmp_path, 2))
  _same(tmp_path, one)


_HANGS = """
import ctypes, os, signal, sys
from absl import flags
from ecos_jax import distributed
distributed.define_flags()
flags.FLAGS(sys.argv[:1])
distributed._SAVE_SECONDS = 0.5
distributed.start()
with distributed.saving():
  os.kill(os.getpid(), signal.SIGTERM)
  ctypes.CDLL(None).sleep(60)
"""


def test_who_does_not_stop_in_time_is_stopped():
  result = subprocess.run(
    [sys.executable, "-c", _HANGS],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=30,
  )
  assert result.returncode == 75
  assert result.stderr == f"{distributed.PREEMPTED}\n"


_SMOKE = "--config=configs/digits_manual.py:smoke"


@pytest.mark.slow
@pytest.mark.parametrize(
  "own_flags, said",
  [
    ((["--config.seed=1"], ["--config.seed=2"]), "--config.seed=2 here, 1 on"),
    ((["--workdir={}/a"], ["--workdir={}/b"]), "is not the folder that"),
    ((["--config.sampling.budget=9999"],) * 2, "larger than the pool"),
  ],
)
def test_an_error_of_one_ends_all_with_its_line(
  own_flags, said, start, tmp_path
):
  own_flags = [[f.format(tmp_path) for f in flags] for flags in own_flags]
  jobs = start(2, _SMOKE, f"--workdir={tmp_path}", own_flags=own_flags)
  for code, _, err in _end(jobs):
    assert code == 1
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0]
    assert "Traceback" not in err


@pytest.mark.slow
def test_those_who_do_not_come_are_named_after_the_timeout(start_job, tmp_path):
  job = start_job(
    *(_SMOKE, f"--workdir={tmp_path}", "--initialization_timeout=1"),
    *(f"--coordinator=localhost:{_port()}", "--num_processes=2"),
    "--process_id=0",
  )
  assert job.wait() == 1
  [line] = job.err.splitlines()
  assert "--initialization_timeout=1" in line


@pytest.mark.slow
@pytest.mark.parametrize(
  "count, victim, begun",
  [(2, 1, "model/checkpoints/10"), (4, 0, "codebook/started.json")],
)
def test_the_whole_job(
  count, victim, begun, finished_job, job_flags, start, tmp_path
):
  """Each has its own name for the folder that they share."""
  shared = tmp_path / "shared"
  shared.mkdir()
  views = [tmp_path / f"view-{process}" for process in range(count)]
  for view in views:
    view.symlink_to(shared)
  flags = job_flags("manual", shared)
  own_flags = [[f"--workdir={view}"] for view in views]
  jobs = start(count, *flags, own_flags=own_flags)
  jobs[victim].wait_until((shared / begun).exists)
  jobs[victim].signal(signal.SIGKILL)
  begin = time.monotonic()
  results = _end(jobs)
  assert time.monotonic() - begin < 5 + 10
  del results[victim]
  for code, _, err in results:
    assert code != 0
    # Whichever notices first.
    assert re.search(
      "process was lost|process 0 was lost|task died"
      f"|process {victim} gave no sign of life",
      err,
    )
  _succeed(start(count, *flags, own_flags=own_flags))

  alone = finished_job("manual")
  np.testing.assert_array_equal(
    *(np.load(path / "proxy" / "indices.npy") for path in (shared, alone))
  )
  summaries = [
    json.loads((folder / "summary.json").read_bytes())
    for folder in (shared, alone)
  ]
  for summary in summaries:
    del summary["seconds"], summary["training"]
  # The sum of gradients is rounded otherwise, so an image may fall otherwise.
  accuracies = [summary.pop("accuracy") for summary in summaries]
  assert abs(accuracies[0] - accuracies[1]) < 0.03
  models = [summary.pop("model") for summary in summaries]
  assert models[0]["parameters"] == models[1]["parameters"]
  assert summaries[0] == summaries[1]


if __name__ == "__main__":  # What `makers` starts.
  _OUT = flags.DEFINE_string("out", None, "Folder.")

  def _main(argv):
    del argv
    distributed.start()
    make(Path(_OUT.value))
    distributed.finish()

  cli.run(_main)

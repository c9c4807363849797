"""What goes wrong around a job: the disk, the clock, the number of devices."""

import contextlib
import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest


def _fails(start_job, flags, said):
  job = start_job(*flags)
  assert job.wait() == 1
  [line] = job.err.splitlines()
  assert line.startswith("error: ") and said in line


def _stops(start_job, flags, where, **options):
  job = start_job(*flags, patched=(f"ecos_jax.{where}", 0), **options)
  assert job.wait() == 75, job.err


def _ends(start_job, flags, path, expected, **options):
  """Runs a job to its end; returns how the accuracy differs."""
  job = start_job(*flags, **options)
  assert job.wait() == 0, job.err
  np.testing.assert_array_equal(
    *(np.load(folder / "proxy/indices.npy") for folder in (path, expected))
  )
  accuracies = [
    json.loads((folder / "summary.json").read_bytes())["accuracy"]
    for folder in (path, expected)
  ]
  return abs(accuracies[0] - accuracies[1])


@pytest.fixture
def disk(tmp_path):
  """Mounts a small disk; returns its folder and what mounts it again."""
  folder = tmp_path / "disk"
  folder.mkdir()

  def mount(*arguments):
    return subprocess.run(
      ["mount", *arguments, str(folder)], capture_output=True, check=False
    ).returncode

  if mount("-t", "tmpfs", "-o", "size=160k", "tmpfs"):
    pytest.skip("a disk can be mounted by root alone")
  yield folder, lambda options: mount("-o", f"remount,{options}")
  subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_and_then_read_only(
  disk, finished_job, start_job, job_flags
):
  folder, remount = disk
  flags = job_flags("manual", folder / "run")
  # Too small for the bank, for a checkpoint, for two, for the exported model.
  for size in ("160k", "500k", "2500k", "3800k"):
    remount(f"size={size}")
    said = f"no space left on the disk of --workdir={folder}/run: free some"
    _fails(start_job, flags, said)
  remount("size=64m,ro")
  said = f"--workdir={folder}/run cannot be written to: Read-only file system"
  _fails(start_job, flags, said)
  remount("rw")
  assert not _ends(start_job, flags, folder / "run", finished_job("manual"))


@pytest.fixture
def freeze():
  """Returns what makes a folder read-only, and takes that back.

  A mount of its own hides the writable one: a file system on which a job holds
  a file open for writing cannot be mounted read-only. Such a file goes on.
  """

  def mount(*arguments):
    done = subprocess.run(["mount", *arguments], stderr=subprocess.DEVNULL)
    if done.returncode:
      pytest.skip("a folder can be mounted by root alone")

  @contextlib.contextmanager
  def freeze(folder):
    mount("--bind", str(folder), str(folder))
    try:
      mount("-o", "remount,bind,ro", str(folder))
      yield
    finally:
      subprocess.run(["umount", "--lazy", str(folder)], check=True)

  return freeze


@pytest.mark.slow
def test_a_workdir_that_becomes_read_only(
  freeze, finished_job, start_job, job_flags, tmp_path
):
  path = tmp_path / "run"
  flags = job_flags("manual", path)
  for stage in ("pool", "bank", "proxy"):
    job = start_job(*flags)
    job.wait_for(stage)
    job.signal(signal.SIGSTOP)
    with freeze(path):
      job.signal(signal.SIGCONT)
      assert job.wait() == 1
      [line] = job.err.splitlines()
      said = f"error: --workdir={path} can no longer be written to: make it"
      assert line.startswith(said)
  assert not _ends(start_job, flags, path, finished_job("manual"))


@pytest.mark.slow
def test_a_clock_that_jumps(finished_job, start_job, job_flags, tmp_path):
  """As if all was written long ago, and then as if it will be."""
  flags = job_flags("manual", tmp_path / "run")
  jumps = (
    ("encoders.registry:encode", -40),
    ("training.checkpoints:Checkpoints", 80),
  )
  for where, years in jumps:
    _stops(start_job, flags, where)
    for file in (tmp_path / "run").rglob("*"):
      seconds = file.stat().st_mtime + years * 365 * 86400
      os.utime(file, (seconds, seconds))
  assert not _ends(start_job, flags, tmp_path / "run", finished_job("manual"))


@pytest.mark.slow
def test_other_numbers_of_devices(finished_job, start_job, job_flags, tmp_path):
  flags = job_flags("manual", tmp_path / "run")
  for where in ("encoders.registry:encode", "training.checkpoints:Checkpoints"):
    for devices in (8, 2):
      _stops(start_job, flags, where, devices=devices)
  shards = list((tmp_path / "run" / "bank").glob("*.npy"))
  assert len(shards) == 7
  checkpoints = tmp_path / "run" / "model" / "checkpoints"
  assert len(list(checkpoints.iterdir())) == 2
  expected = finished_job("manual")
  assert _ends(start_job, flags, tmp_path / "run", expected) < 0.03
  for shard in shards:
    # To the rounding of float16: the work is split otherwise.
    other = expected / "bank" / shard.name
    np.testing.assert_allclose(np.load(shard), np.load(other), atol=1e-3)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_the_steps_since_the_last(
  finished_job, start_job, job_flags, tmp_path
):
  expected, path = finished_job("manual"), tmp_path / "run"
  shutil.copytree(expected, path)
  (path / "model" / "manifest.json").unlink()
  last = path / "model" / "checkpoints" / "20" / "state"
  files = [file for file in last.rglob("*") if file.is_file()]
  largest = max(files, key=lambda file: file.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  flags = job_flags("manual", path)
  assert not _ends(start_job, flags, path, expected)
  for name in ("metrics.jsonl", "model.jaxexport", "model.safetensors"):
    ours, theirs = path / "model" / name, expected / "model" / name
    assert ours.read_bytes() == theirs.read_bytes()

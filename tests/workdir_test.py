import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from ecos_jax import workdir as workdir_lib


@pytest.fixture
def work(tmp_path):
  with workdir_lib.Workdir(tmp_path) as opened:
    yield opened


def _fill(calls):
  def work(path):
    calls.append(path)
    (path / "artefact").write_text("whole")
    return {"count": 3}

  return work


def test_a_finished_stage_is_skipped(tmp_path):
  calls = []
  for _ in range(2):
    with workdir_lib.Workdir(tmp_path) as work:
      stage = work.stage("bank", {"a.b": 1}, {"pool": "x"}, _fill(calls))
  assert len(calls) == 1
  assert stage.skipped
  assert stage.result == {"count": 3}


def test_another_configuration_is_refused_and_named(work):
  work.stage("codebook", {"codebook.size": 100}, {"bank": "x"}, _fill([]))
  with pytest.raises(workdir_lib.WorkdirError) as caught:
    work.stage("codebook", {"codebook.size": 50}, {"bank": "x"}, _fill([]))
  assert "`codebook.size` was 100, now is 50" in str(caught.value)
  with pytest.raises(workdir_lib.WorkdirError, match="input 'bank' changed"):
    work.stage("codebook", {"codebook.size": 100}, {"bank": "y"}, _fill([]))


def test_an_interrupted_stage_begins_anew(work):
  def interrupted(path):
    (path / "half").write_text("half")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    work.stage("query", {}, {}, interrupted)
  stage = work.stage("query", {}, {}, _fill([]))
  assert not (stage.path / "half").exists()


def test_an_interrupted_resumable_stage_finds_what_it_left(work):
  def interrupted(path):
    (path / "shard").write_text("done")
    # As a kill while the next one is written.
    (path / ".shard-2.npy.0123abcd.tmp").write_text("half")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    work.stage("bank", {"x": 1}, {}, interrupted, resumable=True)
  with pytest.raises(workdir_lib.WorkdirError, match="was 1, now is 2"):
    work.stage("bank", {"x": 2}, {}, _fill([]), resumable=True)
  stage = work.stage("bank", {"x": 1}, {}, _fill([]), resumable=True)
  assert (stage.path / "shard").read_text() == "done"
  assert not list(stage.path.glob("*.tmp"))


def test_a_second_job_is_refused_with_the_holder(tmp_path):
  holder = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "import pathlib, sys, time; from ecos_jax import workdir\n"
      "w = workdir.Workdir(pathlib.Path(sys.argv[1]))\n"
      "print('held', flush=True); time.sleep(60)",
      str(tmp_path),
    ],
    stdout=subprocess.PIPE,
  )
  with holder:
    assert holder.stdout is not None
    holder.stdout.readline()
    said = rf"process {holder.pid} on \S+ since \d{{4}}-.* UTC: wait for it"
    with pytest.raises(workdir_lib.WorkdirError, match=said):
      workdir_lib.Workdir(tmp_path)
    holder.send_signal(signal.SIGKILL)
  # The lock of a killed job is free.
  with workdir_lib.Workdir(tmp_path):
    pass


def test_a_workdir_on_a_file_system_without_locks_is_used(
  tmp_path, monkeypatch, caplog
):
  def flock(file, kind):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(fcntl, "flock", flock)
  with workdir_lib.Workdir(tmp_path):
    pass
  [warning] = caplog.messages
  assert warning.startswith(f"{tmp_path}: its file system has no locks")
  assert "no second job" in warning


def test_a_damaged_manifest_is_named(work):
  stage = work.stage("query", {}, {}, _fill([]))
  manifest = stage.path / workdir_lib.MANIFEST
  manifest.write_bytes(manifest.read_bytes()[:20])
  with pytest.raises(workdir_lib.WorkdirError, match=r"manifest\.json"):
    work.stage("query", {}, {}, _fill([]))


def test_a_manifest_of_another_shape_is_named(work):
  stage = work.stage("query", {}, {}, _fill([]))
  manifest = stage.path / workdir_lib.MANIFEST
  good = json.loads(manifest.read_bytes())
  said = rf"{manifest} is damaged.*: delete the folder {stage.path} to redo it"
  lacking = good | {"result": {}}
  for shape in ({}, [], None, 3, good | {"identity": {}}, good | {"result": 1}):
    manifest.write_text(json.dumps(shape))
    with pytest.raises(workdir_lib.WorkdirError, match=said):
      work.stage("query", {}, {}, _fill([]))
  manifest.write_text(json.dumps(lacking))
  result = work.stage("query", {}, {}, _fill([])).result
  with pytest.raises(workdir_lib.WorkdirError, match=said):
    result["count"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(workdir_lib.WorkdirError, match="`workdir`"):
    workdir_lib.Workdir(tmp_path / "file")


def test_the_artefacts_reach_the_disk_before_the_manifest(work, monkeypatch):
  synced = []

  def fsync(descriptor):
    synced.append(os.fstat(descriptor).st_ino)

  def fill(path):
    (path / "folder").mkdir()
    (path / "folder/artefact").write_text("whole")
    monkeypatch.setattr(os, "fsync", fsync)
    return {}

  path = work.stage("bank", {}, {}, fill).path
  *before, manifest, folder = synced
  wanted = [path / "folder/artefact", path / "folder", path, work.path]
  assert {p.stat().st_ino for p in wanted} <= set(before)
  assert manifest == (path / workdir_lib.MANIFEST).stat().st_ino
  assert folder == path.stat().st_ino


@pytest.mark.parametrize("free", [0, 1 << 30])
def test_a_full_disk_is_named_however_a_library_reports_it(
  work, monkeypatch, free
):
  monkeypatch.setattr(
    workdir_lib.shutil,
    "disk_usage",
    lambda path: types.SimpleNamespace(free=free),
  )

  def fails(path):
    raise ValueError("RESOURCE_EXHAUSTED")

  if free:
    with pytest.raises(ValueError, match="RESOURCE_EXHAUSTED"):
      work.stage("model", {}, {}, fails)
  else:
    with pytest.raises(workdir_lib.WorkdirError, match="no space left"):
      work.stage("model", {}, {}, fails)
  assert not work.done("model")


def test_files_that_are_not_of_a_run_are_left_alone(work):
  thesis = work.path / "model" / "thesis.txt"
  thesis.parent.mkdir()
  thesis.write_text("mine")
  with pytest.raises(workdir_lib.WorkdirError, match="not of a run"):
    work.stage("model", {}, {}, _fill([]))
  assert thesis.read_text() == "mine"


def test_a_damaged_array_is_named(tmp_path):
  path = tmp_path / "sizes.npy"
  np.save(path, np.arange(100))
  np.testing.assert_array_equal(workdir_lib.load_array(path), np.arange(100))
  path.write_bytes(path.read_bytes()[:-8])
  for mode in (None, "r"):
    with pytest.raises(
      workdir_lib.WorkdirError, match=r"sizes\.npy is damaged"
    ):
      workdir_lib.load_array(path, mode)


def test_a_disk_that_became_read_only_is_named(work, monkeypatch):
  def fails(path):
    raise ValueError("INTERNAL: cannot open")

  monkeypatch.setattr(workdir_lib.os, "access", lambda path, mode: False)
  with pytest.raises(workdir_lib.WorkdirError, match="no longer be written to"):
    work.stage("model", {}, {}, fails)

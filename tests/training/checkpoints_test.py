import gc
import os
from pathlib import Path
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.training import checkpoints

# Orbax leaves more than coroutines behind when a read fails (see pyproject).
_FAILED_READS = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def _state(step, many=0):
  key = jax.random.key(step)
  more = {f"bias{i}": jax.random.normal(key, (300, 40)) for i in range(many)}
  return more | {
    "step": jnp.int32(step),
    "key": jax.random.key_data(key),
    "params": {"kernel": jax.random.normal(key, (30, 40))},
    "none": {},
  }


def _save(directory, steps, many=0):
  with checkpoints.Checkpoints(directory) as saved:
    for step in steps:
      saved.save(step, _state(step, many), {"inputs": {"labelled": step}})


def _restore(directory):
  try:
    with checkpoints.Checkpoints(directory) as saved:
      return saved.restore(_state(0))
  finally:
    gc.collect()


def _assert_is(restored, step):
  assert restored.step == step
  assert restored.record == {"inputs": {"labelled": step}}
  jax.tree.map(np.testing.assert_array_equal, restored.state, _state(step))


def test_nothing_saved_is_none(tmp_path):
  assert _restore(tmp_path / "new") is None


def test_the_last_of_two_kept(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  directory = (tmp_path / "saved").relative_to(tmp_path)
  _save(directory, [5, 10, 15])
  steps = {path.name for path in directory.iterdir() if path.name.isdigit()}
  assert steps == {"10", "15"}
  _assert_is(_restore(directory), 15)


def _damage(file, how):
  data = file.read_bytes()
  if how == "cut":
    file.write_bytes(data[: len(data) // 2])
  elif how == "flipped":
    middle = len(data) // 2
    flipped = bytes([data[middle] ^ 1]) if data else b"x"
    file.write_bytes(data[:middle] + flipped + data[middle + 1 :])
  else:
    file.unlink()


@_FAILED_READS
@pytest.mark.parametrize(
  "how",
  [
    "flipped",
    *(pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "gone")),
  ],
)
def test_damage_to_any_file_gives_the_same_or_the_one_before(tmp_path, how):
  _save(tmp_path / "good", [5, 10])
  files = [path for path in (tmp_path / "good/10").rglob("*") if path.is_file()]
  fallen_back = []
  for number, file in enumerate(files):
    directory = tmp_path / str(number)
    shutil.copytree(tmp_path / "good", directory)
    _damage(directory / file.relative_to(tmp_path / "good"), how)
    restored = _restore(directory)
    _assert_is(restored, restored.step)
    if restored.step == 5:
      fallen_back.append(directory)
  # The run does step 10 again, and can save it.
  _save(fallen_back[-1], [10])
  _assert_is(_restore(fallen_back[-1]), 10)
  # What orbax left of the failed reads warns here, where it is expected.
  gc.collect()


def _largest(directory):
  files = [path for path in directory.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


@_FAILED_READS
def test_a_finished_model_is_the_last_or_none(tmp_path):
  directory = tmp_path / "saved"
  _save(directory, [5, 10])

  def last():
    with checkpoints.Checkpoints(directory, read_only=True) as saved:
      return saved.restore(_state(0))

  _assert_is(last(), 10)
  _damage(_largest(directory / "10"), "cut")
  before = sorted(directory.rglob("*"))
  with pytest.raises(errors.EcosError, match=r"last checkpoint, .*saved/10"):
    last()
  assert sorted(directory.rglob("*")) == before
  gc.collect()


@_FAILED_READS
def test_all_damaged_is_an_error_that_names_the_folder(tmp_path):
  _save(tmp_path / "saved", [5, 10])
  for step in ("5", "10"):
    _damage(_largest(tmp_path / "saved" / step), "cut")
  with pytest.raises(errors.EcosError, match=r"saved.*delete that folder"):
    _restore(tmp_path / "saved")
  gc.collect()
  assert (tmp_path / "saved" / "10").exists()


_PROGRAM = """
import pathlib, resource, signal, sys
from ecos_jax import cli, errors
from ecos_jax.training import checkpoints
from tests.training import checkpoints_test

what, folder = sys.argv.pop(1), sys.argv.pop(1)

def main(argv):
  state = checkpoints_test._state(0, many=20)
  with checkpoints.Checkpoints(pathlib.Path(folder)) as saved:
    if what == "restore":
      saved.restore(state)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    try:
      saved.save(15, state, {})
    except Exception as error:
      raise errors.EcosError("as on a full disk") from error

cli.run(main)
"""


@pytest.mark.parametrize(
  ("what", "said"),
  [("restore", "none of the checkpoints"), ("save", "as on a full disk")],
)
def test_what_fails_says_so_and_no_more(tmp_path, what, said):
  """Also at the end of the process, when what orbax abandoned is collected."""
  _save(tmp_path, [5, 10], many=20)
  if what == "restore":
    for file in tmp_path.rglob("d/*"):
      _damage(file, "flipped")
  root = Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM, what, str(tmp_path)],
    cwd=root,
    # What XLA says of its compilation cache is no matter of ours.
    env=os.environ | {"PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  *warnings, error = done.stderr.splitlines()
  assert error.startswith(f"error: {said}")
  assert len(warnings) == 2 * (what == "restore")
  for step, warning in zip((10, 5), warnings, strict=False):
    assert f"{tmp_path}/{step} is unreadable: " in warning
    assert len(warning) < 300 + len(str(tmp_path))

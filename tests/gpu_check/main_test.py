import json
import subprocess
import sys

import pytest

from ecos_jax.gpu_check import __main__ as gpu_check
from ecos_jax.gpu_check import checks


def run(*flags):
  return subprocess.run(
    [sys.executable, "-m", "ecos_jax.gpu_check", *flags],
    capture_output=True,
    text=True,
  )


@pytest.mark.slow
def test_every_item_runs_at_tiny_shapes_on_cpu(tmp_path):
  output = tmp_path / "gpu_check.json"
  done = run("--dry_run", f"--output={output}")
  assert done.returncode == 0, done.stdout + done.stderr
  written = json.loads(output.read_text())
  assert [item["item"] for item in written["items"]] == list(gpu_check.ITEMS)
  assert all(item["passed"] and item["rows"] for item in written["items"])


def test_without_a_gpu_it_says_what_to_do(tmp_path):
  done = run(f"--output={tmp_path / 'gpu_check.json'}")
  assert done.returncode == 1
  assert "no GPU" in done.stderr and "--dry_run" in done.stderr


def test_an_item_that_fails_says_why(capsys, monkeypatch):
  def wrong(tiny):
    yield {"labels_differ": 1}
    raise checks.CheckError("a label too far")

  monkeypatch.setitem(gpu_check.ITEMS, "random_shapes", wrong)
  result = gpu_check._run("random_shapes", tiny=True)
  assert not result["passed"] and "too far" in result["error"]
  assert result["rows"] == [{"labels_differ": 1}]
  assert "FAILED" in capsys.readouterr().out

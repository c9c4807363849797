import json

import pytest

from ecos_jax.gpu_check import __main__ as gpu_check
from ecos_jax.gpu_check import checks


@pytest.fixture
def run(start_job, tmp_path):
  """Returns a function that starts the command, and the file it writes."""
  output = tmp_path / "gpu_check.json"
  module = "ecos_jax.gpu_check"
  return (
    lambda *flags: start_job(f"--output={output}", *flags, module=module),
    output,
  )


@pytest.mark.slow
def test_every_item_runs_at_tiny_shapes_on_cpu(run):
  start, output = run
  job = start("--dry_run")
  assert job.wait() == 0, job.out + job.err
  written = json.loads(output.read_text())
  assert [item["item"] for item in written["items"]] == list(gpu_check.ITEMS)
  assert all(item["passed"] and item["rows"] for item in written["items"])


def test_without_a_gpu_it_says_what_to_do(run):
  start, _ = run
  job = start()
  assert job.wait() == 1
  assert "no GPU" in job.err and "--dry_run" in job.err


def test_an_item_that_fails_says_why(capsys, monkeypatch):
  def wrong(tiny):
    yield {"labels_differ": 1}
    raise checks.CheckError("a label too far")

  monkeypatch.setitem(gpu_check.ITEMS, "random_shapes", wrong)
  result = gpu_check._run("random_shapes", tiny=True)
  assert not result["passed"] and "too far" in result["error"]
  assert result["rows"] == [{"labels_differ": 1}]
  assert "FAILED" in capsys.readouterr().out

"""The command on tiny sizes: what it writes, and what it survives."""

import json
from pathlib import Path
import pkgutil
import signal

import numpy as np
import pytest

from ecos_jax import children
from ecos_jax.benchmark import cases
from ecos_jax.benchmark import run as run_lib

_STABLE = {
  "stage",
  "shape",
  "implementation",
  "seconds",
  "spread",
  "rate",
  "gemm_share",
}


@pytest.fixture
def start(start_job):
  """Returns a function that starts the command."""
  return lambda *flags, **environment: start_job(
    *flags, module="ecos_jax.benchmark", **environment
  )


def _strict(path: Path) -> dict:
  def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")

  return json.loads(path.read_text(), parse_constant=refuse)


class _Here:
  """Stands in for `children.Child`, but calls the function in this process."""

  def __init__(self, start, job, *, environment, log=None):
    del environment, log
    self._answer = pkgutil.resolve_name(start)(json.loads(json.dumps(job)))

  def call(self, question):
    return json.loads(json.dumps(self._answer(question)))

  def pause(self):
    pass

  resume = close = pause


@pytest.mark.slow
def test_every_stage_writes_its_rows(monkeypatch, tmp_path):
  monkeypatch.setattr(children, "Child", _Here)
  output, said = tmp_path / "result.json", []
  preset = cases.PRESETS["smoke"]
  run = run_lib.Run(
    cases.chosen(preset, [], []),
    cases.Options(preset.rounds, preset.memory_budget, "hog"),
    only=["ecos_jax", "gemm", "memory", "bare", "scikit-learn"],
    scratch=tmp_path,
    output=output,
    say=said.append,
  )
  run.all()
  result = _strict(output)
  assert result["complete"]
  assert result["skipped"] == []
  assert result["device"]["cores"] >= 1
  assert {"python", "jax", "numpy", "scikit-learn"} <= result["versions"].keys()
  assert {row["stage"] for row in result["rows"]} == set(cases.STAGES)
  for row in result["rows"]:
    assert row.keys() >= _STABLE
    assert len(row["rounds"]) == 2
    low, high = row["spread"]
    assert low <= row["seconds"] <= high
    assert row["shape"] in "".join(said)
  by_name = {
    (row["stage"], row["implementation"]): row for row in result["rows"]
  }
  for name in ("ecos_jax", "scikit-learn"):
    assert by_name["assign", name]["correct"] > 0.999
  assert by_name["converge", "scikit-learn"]["reached"]
  assert by_name["assign", "gemm"]["gemm_share"] == 1
  assert 0 <= by_name["stream", "ecos_jax"]["waiting_share"] <= 1
  assert by_name["train", "ecos_jax"]["bare_ratio"] > 0
  # From the same centroids, the same number of iterations.
  ours, theirs = (
    by_name["fit", name]["inertia_per_row"]
    for name in ("ecos_jax", "scikit-learn")
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_valid_rows_and_nothing_else(
  sent, start, tmp_path
):
  output, scratch = tmp_path / "result.json", tmp_path / "scratch"
  scratch.mkdir()
  job = start(
    "--shapes=assign:3000x16x20",
    "--implementations=ecos_jax",
    "--rounds=1000000",
    f"--output={output}",
    TMPDIR=str(scratch),
  )
  job.wait_until(lambda: output.exists() and _strict(output)["rows"])
  assert any(scratch.iterdir())
  job.signal(sent)
  assert job.wait() == 130
  assert "the rows so far" in job.err
  assert "Traceback" not in job.err
  result = _strict(output)
  assert not result["complete"]
  assert result["rows"][0].keys() >= _STABLE
  assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (("--stages=speed",), "converge"),
    (("--shapes=assign:10x4",), "assign:3000x16x20"),
    (("--shapes=assign:10x4x11",), "more centroids than rows"),
    (("--shapes=converge:100x4x3",), "blobs"),
    (("--shapes=sample:100x4x3x101",), "more samples than rows"),
    (("--implementations=sciktlearn",), "sciktlearn"),
    (("--output=nowhere/result.json",), "--output"),
    (("--encoder=nope",), "hog"),
  ],
)
def test_bad_input_gets_one_line(flags, said, start):
  job = start(*flags)
  assert job.wait() == 1
  [line] = job.err.splitlines()
  assert line.startswith("error: ") and said in line

"""The command on tiny sizes: what it writes, and what it survives."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.benchmark import calls
from ecos_jax.benchmark import cells
from ecos_jax.benchmark import machine
from ecos_jax.benchmark import peers
from ecos_jax.benchmark import report
from ecos_jax.benchmark import run as run_lib
from ecos_jax.benchmark import timing

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = os.environ | {"PYTHONPATH": str(_ROOT)}
_STABLE = {
  "stage",
  "shape",
  "implementation",
  "seconds",
  "spread",
  "rate",
  "gemm_share",
}


def _start(*flags) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", "ecos_jax.benchmark", *flags],
    cwd=_ROOT,
    env=_ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _strict(path: Path) -> dict:
  def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")

  return json.loads(path.read_text(), parse_constant=refuse)


def _result(seconds, **more):
  return {"seconds": seconds, "peak_bytes": 1 << 20, **more}


def _rows(gflops_by_name, peak_gflops=100.0, chip_flops=None):
  """Rows of assign whose rates are as given."""
  cell = cells.parse("assign", "1000x100x100")
  rows = [
    report.row(cell, name, [_result(0.02 / gflops)], devices=1)
    for name, gflops in gflops_by_name.items()
  ]
  report.complete(rows, peak_gflops, chip_flops)
  return {row["implementation"]: row for row in rows}


@pytest.mark.slow
def test_every_stage_writes_its_rows(tmp_path):
  output = tmp_path / "result.json"
  with _start(
    "--preset=smoke",
    "--implementations=ecos_jax,gemm,memory,bare,scikit-learn",
    f"--output={output}",
  ) as process:
    out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  result = _strict(output)
  assert result["complete"]
  assert result["skipped"] == []
  assert result["device"]["cores"] >= 1
  assert {"python", "jax", "numpy", "scikit-learn"} <= result["versions"].keys()
  assert {row["stage"] for row in result["rows"]} == set(cells.STAGES)
  for row in result["rows"]:
    assert row.keys() >= _STABLE
    assert len(row["rounds"]) == 2
    low, high = row["spread"]
    assert low <= row["seconds"] <= high
    assert row["shape"] in out
  by_name = {
    (row["stage"], row["implementation"]): row for row in result["rows"]
  }
  for name in ("ecos_jax", "scikit-learn"):
    assert by_name["assign", name]["correct"] > 0.999
  assert by_name["converge", "scikit-learn"]["reached"]
  assert by_name["assign", "gemm"]["gemm_share"] == 1
  assert 0 <= by_name["stream", "ecos_jax"]["waiting_share"] <= 1
  assert by_name["train", "ecos_jax"]["bare_ratio"] > 0.5
  # From the same centroids, the same number of iterations.
  ours, theirs = (
    by_name["fit", name]["inertia_per_row"]
    for name in ("ecos_jax", "scikit-learn")
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_valid_rows_and_nothing_else(sent, tmp_path):
  output, scratch = tmp_path / "result.json", tmp_path / "scratch"
  scratch.mkdir()
  with _start(
    "--shapes=coverage:500x16x20",
    "--implementations=ecos_jax",
    "--rounds=1000000",
    f"--scratch={scratch}",
    f"--output={output}",
  ) as process:
    deadline = time.monotonic() + 120
    while not (output.exists() and _strict(output)["rows"]):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "the rows so far" in err
  assert "Traceback" not in err
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
    (("--scratch=nowhere",), "--scratch"),
    (("--data_dir=nowhere",), "mnist.npz"),
    (("--encoder=nope",), "hog"),
  ],
)
def test_bad_input_gets_one_line(flags, said):
  with _start(*flags) as process:
    _, err = process.communicate(timeout=60)
  assert process.returncode == 1
  assert "Traceback" not in err
  [line] = [line for line in err.splitlines() if line.startswith("error: ")]
  assert said in line


def test_a_peer_that_is_not_installed_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(peers, "installed", lambda name: name == "scikit-learn")
  monkeypatch.setenv("PYTHONPATH", str(_ROOT))
  said = []
  run = run_lib.Run(
    [cells.parse("assign", "300x4x3")],
    cells.Options(1, (1, 2), 1 << 20, "hog", None, 1),
    only=["scikit-learn", "faiss-cpu"],
    scratch=tmp_path,
    output=tmp_path / "result.json",
    say=said.append,
  )
  run.all()
  assert [row["implementation"] for row in run.rows] == ["scikit-learn"]
  [skipped] = run.skipped
  assert skipped["implementation"] == "faiss-cpu"
  assert any("faiss-cpu is left out: not installed" in line for line in said)


def test_a_child_that_fails_says_why(tmp_path):
  job = cells.parse("assign", "30x4x3")._asdict() | {
    "task": "call",
    "names": ["scikit-learn"],
    "options": cells.Options(1, (1, 2), 1, "hog", None, 1)._asdict(),
    "folder": str(tmp_path),
  }
  [(name, i, error)] = timing.rounds([job], _ENVIRONMENT, 1)
  assert (name, i) == ("scikit-learn", 0)
  assert isinstance(error, timing.WorkerError)
  assert "features.npy" in str(error)


def test_rates_over_the_peak_are_suspect():
  rows = _rows({"gemm": 90.0, "ecos_jax": 81.0, "faiss-cpu": 110.0})
  assert rows["ecos_jax"]["gemm_share"] == pytest.approx(0.9)
  assert not rows["ecos_jax"]["suspect"]
  assert rows["faiss-cpu"]["suspect"]
  assert "SUSPECT" in report.table(list(rows.values()))
  # The product itself shows what the machine can do.
  assert not _rows({"gemm": 120.0, "faiss-cpu": 110.0})["faiss-cpu"]["suspect"]


def test_a_difference_lost_in_noise_has_no_rate():
  cell = cells.parse("fit", "1000x10x10")
  row = report.row(cell, "faiss-cpu", [_result(-1e-6)], devices=0)
  report.complete([row], 100.0, None)
  assert row["rate"] is None
  assert row["suspect"]


def test_a_target_is_named_for_whom_it_comes_from():
  cell = cells.parse("converge", "hog-100x72x5")
  targets = {
    name: report.row(cell, name, [_result(1.0)], devices=0)["target_of"]
    for name in ("ecos_jax", "ecos_jax:minibatch", peers.MINIBATCH, "faiss-cpu")
  }
  assert list(targets.values()) == ["lloyd", "minibatch", "minibatch", "lloyd"]


def test_the_median_and_the_spread_are_those_of_the_rounds():
  cell = cells.parse("assign", "100x10x5")
  results = [_result(seconds) for seconds in (3.0, 1.0, 2.0)]
  row = report.row(cell, "gemm", results, devices=2)
  assert (row["seconds"], row["spread"], row["rate"]) == (2, [1, 3], 50)
  assert row["gflops"] == pytest.approx(2 * 100 * 10 * 5 / 2 / 1e9)
  assert row["bytes_per_second"] == 100 * 10 * 4 / 2


def test_flop_utilisation_is_known_of_known_chips():
  assert machine.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
  assert machine.peak_flops("NVIDIA H100 PCIe") == 756e12
  assert machine.peak_flops("TPU v5 lite") == 197e12
  assert machine.peak_flops("TPU v6 lite") == 918e12
  assert machine.peak_flops("cpu") is None
  rows = _rows({"gemm": 98.9, "ecos_jax": 49.45}, chip_flops=989e12)
  assert rows["ecos_jax"]["mfu"] == pytest.approx(5e-5)
  assert _rows({"gemm": 50.0})["gemm"]["mfu"] is None


def test_children_get_all_cores_and_no_blas_overrides():
  base = {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "1", "A": "b"}
  child = machine.environment(base, 4)
  assert "OPENBLAS_CORETYPE" not in child
  assert child["OMP_NUM_THREADS"] == str(machine.cores())
  assert child["A"] == "b"
  assert "--xla_force_host_platform_device_count=4" in child["XLA_FLAGS"]


def test_shapes_replace_those_of_the_preset():
  preset = cells.PRESETS["smoke"]
  assert [c.stage for c in cells.chosen(preset, [], [])] == list(cells.STAGES)
  shape = "assign:1e3x4x3"
  assert cells.chosen(preset, [], [shape]) == [
    cells.Cell("assign", (1000, 4, 3))
  ]
  both = cells.chosen(preset, ["encode", "assign"], [shape])
  assert [c.name for c in both] == ["64", "1000x4x3"]
  for preset in cells.PRESETS.values():
    assert cells.chosen(preset, [], [])
  with pytest.raises(errors.ConfigError):
    cells.parse("assign", "0x4x3")


def test_inertia_against_all_distances():
  rng = np.random.default_rng(1)
  features = rng.standard_normal((10_000, 5), np.float32)
  centroids = rng.standard_normal((7, 5), np.float32)
  distances = ((features[:, None] - centroids) ** 2).sum(2).min(1)
  found = cells.inertia(features, centroids)
  assert found == pytest.approx(distances.sum(dtype=np.float64), rel=1e-5)


def test_the_first_effort_that_suffices_is_the_one_that_is_timed():
  features = np.float32([[0.0], [1.0], [10.0], [11.0]])
  solutions = {1: [[0.0]], 2: [[5.0]], 3: [[0.5], [10.5]], 4: [[0], [1]]}
  tried = []

  def cluster(effort):
    tried.append(effort)
    return np.float32(solutions[effort])

  call = calls.converging(cluster, (1, 2, 3, 4), features, 1.0, 60.0)
  call()
  result = call()
  assert tried == [1, 2, 3, 3]
  assert result["reached"]
  assert result["inertia"] == pytest.approx(1)
  missed = calls.converging(cluster, (1, 2), features, 1.0, 60.0)()
  assert not missed["reached"]


def test_labels_are_checked_in_double_precision():
  features = np.float32([[0.0], [9.0]])
  centroids = np.float32([[1.0], [8.0]])
  call = calls.assigning(lambda: np.array([0, 0]), features, centroids)
  assert call()["correct"] == 0.5

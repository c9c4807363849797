import pytest

from ecos_jax.benchmark import cases
from ecos_jax.benchmark import rows as rows_lib


def _result(seconds, **more):
  return {"seconds": seconds, "peak_bytes": 1 << 20, **more}


def _rows(gflops_by_name):
  """Rows of assign whose rates are as given."""
  case = cases.parse("assign", "1000x100x100")
  rows = [
    rows_lib.row(case, name, [_result(0.02 / gflops)], devices=1)
    for name, gflops in gflops_by_name.items()
  ]
  rows_lib.complete(rows, 100.0)
  return {row["implementation"]: row for row in rows}


def test_rates_over_the_peak_are_suspect():
  rows = _rows({"gemm": 90.0, "ecos_jax": 81.0, "faiss-cpu": 110.0})
  assert rows["ecos_jax"]["gemm_share"] == pytest.approx(0.9)
  assert not rows["ecos_jax"]["suspect"]
  assert rows["faiss-cpu"]["suspect"]
  assert "SUSPECT" in rows_lib.table(list(rows.values()))
  # The product itself shows what the machine can do.
  assert not _rows({"gemm": 120.0, "faiss-cpu": 110.0})["faiss-cpu"]["suspect"]


def test_a_difference_lost_in_noise_has_no_rate():
  case = cases.parse("fit", "1000x10x10")
  row = rows_lib.row(case, "faiss-cpu", [_result(-1e-6)], devices=0)
  rows_lib.complete([row], 100.0)
  assert row["rate"] is None
  assert row["suspect"]


def test_a_target_is_named_for_whom_it_comes_from():
  case = cases.parse("converge", "hog-100x72x5")
  targets = {
    name: rows_lib.row(case, name, [_result(1.0)], devices=0)["target_of"]
    for name in ("ecos_jax", "ecos_jax:minibatch", cases.MINIBATCH, "faiss-cpu")
  }
  assert list(targets.values()) == ["lloyd", "minibatch", "minibatch", "lloyd"]


def test_the_median_and_the_spread_are_those_of_the_rounds():
  case = cases.parse("assign", "100x10x5")
  results = [_result(seconds) for seconds in (3.0, 1.0, 2.0)]
  row = rows_lib.row(case, "gemm", results, devices=2)
  assert (row["seconds"], row["spread"], row["rate"]) == (2, [1, 3], 50)
  assert row["gflops"] == pytest.approx(2 * 100 * 10 * 5 / 2 / 1e9)

import os

import jax
import pytest

from ecos_jax.clustering import kernels
from ecos_jax.gpu_check import timings


def test_a_timing_that_fails_leaves_the_assignment_as_it_was(monkeypatch):
  monkeypatch.setenv(kernels.VARIABLE, "kernel")
  monkeypatch.setattr(jax, "clear_caches", lambda: None)
  used = []

  def fail(*arguments):
    used.append(os.environ[kernels.VARIABLE])
    raise RuntimeError("out of memory")

  monkeypatch.setattr(timings, "_programs", fail)
  with pytest.raises(RuntimeError, match="out of memory"):
    list(timings.xla(tiny=True))
  assert used == ["xla"]
  assert os.environ[kernels.VARIABLE] == "kernel"


def test_the_rows_of_the_smallest_shapes_are_rates_and_times():
  [row] = timings.streaming(tiny=True)
  assert (row["n"], row["d"], row["k"]) == (2000, 16, 20)
  # The bytes of float16 rows.
  seconds = row["assign_ms"] / 1e3
  assert row["gb_per_s"] == pytest.approx(2000 * 16 * 2 / seconds / 1e9)

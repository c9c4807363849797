import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.benchmark import cells


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

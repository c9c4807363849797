import pytest

from ecos_jax import errors
from ecos_jax.benchmark import cases


def test_shapes_replace_those_of_the_preset():
  preset = cases.PRESETS["smoke"]
  assert [c.stage for c in cases.chosen(preset, [], [])] == list(cases.STAGES)
  shape = "assign:1e3x4x3"
  assert cases.chosen(preset, [], [shape]) == [
    cases.Case("assign", (1000, 4, 3))
  ]
  both = cases.chosen(preset, ["encode", "assign"], [shape])
  assert [c.name for c in both] == ["64", "1000x4x3"]
  for preset in cases.PRESETS.values():
    assert cases.chosen(preset, [], [])
  with pytest.raises(errors.ConfigError):
    cases.parse("assign", "0x4x3")

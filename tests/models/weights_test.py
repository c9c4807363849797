import json
import struct

import pytest

from ecos_jax import errors
from ecos_jax.encoders import registry
from ecos_jax.models import weights as weights_lib


def test_the_names_are_those_of_the_weights():
  assert set(registry.PRETRAINED) == set(weights_lib.PUBLISHED)


def test_a_damaged_or_missing_file_is_refused(tmp_path):
  for name in ("x.safetensors", "x.pth"):
    path = tmp_path / name
    with pytest.raises(errors.EcosError, match=r"weights`: .* is no file"):
      registry.get("resnet18", weights=str(path))
    path.write_bytes(b"12345678901234567890")
    with pytest.raises(errors.EcosError, match=r"cannot be read as weights"):
      registry.get("resnet18", weights=str(path))


def test_weights_of_a_type_that_numpy_lacks_are_refused(tmp_path):
  header = {"x": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}
  text = json.dumps(header).encode()
  path = tmp_path / "x.safetensors"
  path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
  with pytest.raises(errors.EcosError, match=r"x\.safetensors cannot be read"):
    registry.get("resnet18", weights=str(path))

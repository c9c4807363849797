import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from ecos_jax import errors
from ecos_jax.encoders import registry
from tests.models import make_references

REFERENCES = np.load(make_references.FILE)


@pytest.fixture(name="weights", scope="module")
def _weights(tmp_path_factory):
  """Returns what writes the random weights of a case to a file."""

  def write(case, **changes):
    shapes = json.loads(str(REFERENCES[f"{case}_shapes"]))
    tensors = {
      name: make_references.tensor(name, shape)
      for name, shape in shapes.items()
    }
    tensors = {k: v for k, v in (tensors | changes).items() if v is not None}
    path = tmp_path_factory.mktemp(case) / f"{case}.safetensors"
    safetensors_numpy.save_file(tensors, path)
    return str(path)

  return write


@pytest.mark.parametrize("case", make_references.CASES)
def test_features_equal_those_of_timm(case, weights):
  _, _, size = make_references.CASES[case]
  name = case.removesuffix("_odd").removesuffix("_scaled")
  encoder = registry.get(name, image_size=size, weights=weights(case))
  features = registry.encode(encoder, make_references.images(size), 2)
  assert features.shape == (2, encoder.dimension)
  # The images differ by more than the tolerance.
  assert np.abs(features[0] - features[1]).max() > 1e-2
  np.testing.assert_allclose(features, REFERENCES[case], rtol=1e-4, atol=1e-4)

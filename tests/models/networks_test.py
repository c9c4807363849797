import json

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from ecos_jax import errors
from ecos_jax.models import networks
from tests.models import make_references

REFERENCES = np.load(make_references.FILE)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if "lite0" in name else ())
    for name in networks.names()
  ],
)
def test_models_map_images_to_logits(name):
  def forward():
    model = networks.get(name, 7, nnx.Rngs(0))
    model.eval()  # Running statistics take long to trace.
    return model(jnp.zeros((2, 28, 28, 3)))

  # Traced only: to compile them all takes long.
  assert nnx.eval_shape(forward).shape == (2, 7)


def test_an_unknown_name_gets_the_valid_ones():
  with pytest.raises(errors.EcosError, match=r"train\.model`=vgg.*convnet"):
    networks.get("vgg", 10, nnx.Rngs(0))


def test_a_pretrained_network_starts_from_its_weights_with_a_new_head(tmp_path):
  shapes = json.loads(str(REFERENCES["resnet18_shapes"]))
  tensors = {n: make_references.tensor(n, s) for n, s in shapes.items()}
  tensors["fc.weight"] = np.ones((1000, 512), np.float32)
  tensors["fc.bias"] = np.ones(1000, np.float32)
  path = tmp_path / "resnet18.safetensors"
  safetensors_numpy.save_file(tensors, path)
  model = networks.start("resnet18", 7, nnx.Rngs(0), str(path))
  model.eval()
  features = nnx.jit(lambda model, images: model.features(images))(
    model, make_references.images(64) / np.float32(127.5) - 1.0
  )
  np.testing.assert_allclose(
    features, REFERENCES["resnet18"], rtol=1e-4, atol=1e-4
  )
  fresh = nnx.jit(lambda: networks.get("resnet18", 7, nnx.Rngs(0)).fc)()
  np.testing.assert_array_equal(model.fc.kernel[...], fresh.kernel[...])
  assert networks.digest("resnet18", str(path)) is not None


def test_weights_are_only_for_networks_that_have_them(tmp_path):
  assert networks.digest("convnet", None) is None
  with pytest.raises(errors.EcosError, match=r"train\.weights`=x.*convnet"):
    networks.check("convnet", "x")
  with pytest.raises(errors.EcosError, match=r"train\.weights`: x is no file"):
    networks.check("resnet18", "x")

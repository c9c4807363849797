from flax import nnx
import jax.numpy as jnp
import pytest

from ecos_jax import errors
from ecos_jax.models import registry


@pytest.mark.parametrize("name", registry.names())
def test_models_map_images_to_logits(name):
  model = registry.get(name, 7, nnx.Rngs(0))
  assert model(jnp.zeros((2, 28, 28, 3))).shape == (2, 7)


def test_an_unknown_name_gets_the_valid_ones():
  with pytest.raises(errors.EcosError, match=r"train\.model=vgg.*convnet"):
    registry.get("vgg", 10, nnx.Rngs(0))

from flax import nnx
import jax
import numpy as np

from ecos_jax.models import convnet


def test_batch_statistics_are_used_in_training_only():
  model = convnet.ConvNet(10, nnx.Rngs(0))
  forward = nnx.jit(lambda model, images: model(images))
  images = jax.random.normal(jax.random.key(0), (6, 12, 12, 3))
  others = images.at[3:].multiply(2.0)
  in_training = forward(model, images)
  assert in_training.shape == (6, 10)
  assert not np.allclose(forward(model, others)[:3], in_training[:3], atol=1e-3)
  model.eval()
  np.testing.assert_allclose(
    forward(model, others)[:3], forward(model, images)[:3], atol=1e-5
  )

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


def test_the_initial_weights_are_those_that_flax_draws_by_default():
  model, key = (
    convnet.ConvNet(10, nnx.Rngs(0), convnet.SMALL),
    jax.random.key(0),
  )
  lecun = nnx.initializers.lecun_normal()
  # A convolution takes one key, a normalisation two.
  for i, layer in ((0, model.convolutions[0]), (9, model.head)):
    kernel = layer.kernel[...]
    expected = lecun(jax.random.fold_in(key, i), kernel.shape)
    np.testing.assert_array_equal(kernel, expected)

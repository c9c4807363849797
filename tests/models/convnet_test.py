import functools

from flax import nnx
import jax
import numpy as np
import pytest

from ecos_jax.models import convnet


@pytest.mark.parametrize(
  "size, width, strides",
  [(7, 3, (1, 1)), (7, 3, (2, 2)), (8, 3, (2, 2)), (8, 5, (2, 1))],
)
def test_patches_convolve_as_xla_does(size, width, strides):
  keys = jax.random.split(jax.random.key(0))
  images = jax.random.normal(keys[0], (2, size, size + 3, 4))
  kernel = jax.random.normal(keys[1], (width, width, 4, 5))

  def xla(images, kernel):
    return jax.lax.conv_general_dilated(
      images,
      kernel,
      strides,
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision="highest",
    )

  def patches(images, kernel):
    return convnet.patch_convolution(images, kernel, strides, "SAME")

  def value_and_gradients(function):
    energy = jax.value_and_grad(lambda *a: (function(*a) ** 2).sum(), (0, 1))
    return jax.jit(energy)(images, kernel), jax.jit(function)(images, kernel)

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3),
    value_and_gradients(patches),
    value_and_gradients(xla),
  )


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

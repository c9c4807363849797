import jax
import numpy as np
import pytest

from ecos_jax.models import efficientnet


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_shifted_products_are_the_grouped_convolution(kernel, stride, size):
  keys = jax.random.split(jax.random.key(0))
  images = jax.random.normal(keys[0], (2, size, size + 1, 6))
  weights = jax.random.normal(keys[1], (kernel, kernel, 1, 6))

  @jax.jit
  def both(*arrays):
    return [
      jax.value_and_grad(
        lambda x, w, f=f: (f(x, w, stride) ** 2).sum(), (0, 1)
      )(*arrays)
      for f in (efficientnet._shifted, efficientnet._convolved)
    ]

  results = both(images, weights)
  for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)

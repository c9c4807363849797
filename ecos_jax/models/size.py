"""How large a network is: what it costs to keep, and to run on one image."""

from flax import nnx
import jax
import jax.numpy as jnp


def parameters(model: nnx.Module) -> int:
  """Returns the number of trained weights."""
  return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def multiply_adds(model: nnx.Module, image_size: int) -> int:
  """Returns the multiply-adds of the forward pass of one image.

  They are half of the floating-point operations that XLA counts in the program
  as it is before optimisation.

  Args:
    model: Maps [b, s, s, 3] float32 to logits; in evaluation mode.
    image_size: s.
  """
  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  cost = jax.jit(model).lower(image).cost_analysis()
  assert cost is not None
  return round(cost["flops"] / 2)

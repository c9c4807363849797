"""The size of a network: its weights, and its multiply-adds per image."""

import math
from typing import Any

from flax import nnx
import jax
from jax.extend import core
import jax.numpy as jnp


def parameters(model: nnx.Module) -> int:
  """Returns the number of trained weights."""
  return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def multiply_adds(model: nnx.Module, image_size: int) -> int:
  """Returns the multiply-adds of the forward pass of one image.

  As is usual, only convolutions (including taps on the padding) and matrix
  products count.

  Args:
    model: Maps [b, s, s, 3] float32 to logits; in evaluation mode.
    image_size: s.
  """
  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  return _count(jax.make_jaxpr(model)(image).jaxpr)


def _count(program: Any) -> int:
  """Returns the multiply-adds of a jaxpr; a scan's for each of its steps."""
  total = 0
  for equation in program.eqns:
    shapes = [variable.aval.shape for variable in equation.invars]
    if equation.primitive.name == "conv_general_dilated":
      # Each output is a sum over a kernel without its axis of outputs.
      axis = equation.params["dimension_numbers"].rhs_spec[0]
      outputs = math.prod(equation.outvars[0].aval.shape)
      total += outputs * math.prod(shapes[1]) // shapes[1][axis]
    elif equation.primitive.name == "dot_general":
      (summed, _), _ = equation.params["dimension_numbers"]
      outputs = math.prod(equation.outvars[0].aval.shape)
      total += outputs * math.prod(shapes[0][axis] for axis in summed)
    times = equation.params.get("length", 1)
    inner = [
      times * _count(jaxpr) for jaxpr in core.jaxprs_in_params(equation.params)
    ]
    # A condition has a branch for each platform; only one of them runs.
    branches = equation.primitive.name == "cond"
    total += max(inner, default=0) if branches else sum(inner)
  return total

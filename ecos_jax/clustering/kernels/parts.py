"""Numbers as sums of float16 parts, which tensor cores multiply.

A bank's rows are float16 already; the centroids, float32, become two parts that
add up to all but the last bit: x.c is two products. Float32 rows become two
parts as well, which makes three products (the fourth is too small to count);
bfloat16 rows fit one part.

Float16 has few exponents. So numbers are scaled before they are split, by a
power of two that brings the largest of them to 2^14 .. 2^15: the centroids
together, and each row by itself. A tensor core drops bits as it accumulates, so
the kernel lets it sum over 64 features at a time, and adds these sums in
float32 outside of it. parts_test.py compares a model of that with float32
arithmetic.
"""

import jax
from jax import lax
import jax.numpy as jnp

# The largest exponent of scaled numbers, and of float32 scales.
_EXPONENT, _MAX_EXPONENT = 15, 126


def pairs(row_parts: int, centroid_parts: int) -> list[tuple[int, int]]:
  """Returns which parts to multiply, the smallest products first."""
  return sorted(
    (
      (i, j)
      for i in range(row_parts)
      for j in range(centroid_parts)
      if i + j < 2
    ),
    key=sum,
    reverse=True,
  )


def split(x: jax.Array, parts: int) -> jax.Array:
  """Returns float16 [parts, ...], the largest first, that add up to x."""
  found = []
  for _ in range(parts - 1):
    # XLA may drop a conversion there and back, but not this.
    high = lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
    found.append(high)
    x = x - high
  return jnp.stack([*found, x]).astype(jnp.float16)


def scale(largest: jax.Array) -> jax.Array:
  """Returns the power of two that brings `largest` to 2^14 .. 2^15."""
  _, exponent = jnp.frexp(largest)
  exponent = jnp.clip(_EXPONENT - exponent, -_MAX_EXPONENT, _MAX_EXPONENT)
  return jnp.where(largest > 0, jnp.ldexp(jnp.float32(1), exponent), 1)

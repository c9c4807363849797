"""Networks, as flax.nnx modules."""

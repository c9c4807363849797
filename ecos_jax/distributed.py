"""Devices: the mesh that every stage shares."""

import jax


def mesh() -> jax.sharding.Mesh:
  """Returns the mesh of all devices of all processes, one axis named 'data'."""
  return jax.make_mesh(
    (jax.device_count(),),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
  )

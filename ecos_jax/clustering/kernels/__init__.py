"""Kernels for what XLA does not fuse by itself.

There is one for Hopper GPUs, where XLA writes the score of every centroid to
device memory. There is none for TPUs: XLA's own program needs no temporary for
the scores there (docs/scaling.md has the compiler's figures).
"""

import re

import jax


def hopper(mesh: jax.sharding.AbstractMesh) -> bool:
  """Returns whether the devices of a mesh are Hopper GPUs (H100, GH200 ...)."""
  device = mesh.abstract_device
  return device is not None and bool(
    re.match(r"NVIDIA G?H\d", device.device_kind)
  )

"""Kernels for what XLA does not fuse by itself, and when they are used.

There is one for Hopper GPUs, where XLA writes the score of every centroid to
device memory. There is none for TPUs: XLA's own program needs no temporary for
the scores there (docs/scaling.md has the compiler's figures).

The flag --assignment says which program finds the nearest centroids there:

* `kernel`: the kernel.
* `fast`: the kernel too, but while k-means iterates it makes one product, not
  two or three. Labels may differ where two centroids are almost equally near.
* `xla`: XLA's program.
"""

import os
import re

from absl import flags
import jax

ASSIGNMENTS = ("kernel", "fast", "xla")
# An environment variable, so that child processes use the same program.
VARIABLE = "ECOS_JAX_ASSIGNMENT"


def define_flags() -> None:
  """Defines the flag --assignment, which `start` reads."""
  flags.DEFINE_enum(
    "assignment",
    ASSIGNMENTS[0],
    ASSIGNMENTS,
    "What finds the nearest centroids on Hopper GPUs: a kernel, the same with "
    "float16's precision while k-means iterates, or XLA's program.",
  )


def use(name: str) -> None:
  """Chooses one of `ASSIGNMENTS`; call it before anything is compiled."""
  os.environ[VARIABLE] = name


def start() -> None:
  """Follows the flag, and says on a GPU which program will run."""
  use(flags.FLAGS.assignment)
  device = jax.devices()[0]
  if device.platform == "gpu":
    mesh = jax.sharding.Mesh([device], ("data",)).abstract_mesh
    print(f"{device.device_kind}: nearest centroids by {assignment(mesh)}")


def assignment(mesh: jax.sharding.AbstractMesh) -> str:
  """Returns which of `ASSIGNMENTS` the devices of a mesh run.

  `xla` unless they are Hopper GPUs (H100, GH200 ...).
  """
  device = mesh.abstract_device
  if device is None or not re.match(r"NVIDIA G?H\d", device.device_kind):
    return "xla"
  return os.environ.get(VARIABLE, ASSIGNMENTS[0])

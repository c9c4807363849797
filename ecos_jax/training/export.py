"""A trained model as one file that needs neither its code nor flax to run.

The file is a serialised `jax.export`: StableHLO with the weights inside. It
takes images uint8 [b, s, s, 3], as they are on disk, and returns logits float32
[b, num_classes]; b is free, and it runs on CPUs, NVIDIA GPUs and TPUs. JAX
promises to read it for six months of its releases, and usually does for longer;
the checkpoints beside it stay readable. Its last 64 bytes are the sha256, in
hex, of all bytes before them, since a damaged file may still load.
"""

from pathlib import Path

from flax import nnx
import jax
from jax import export
import jax.numpy as jnp

from ecos_jax import files
from ecos_jax.training import augment

FILE = "model.jaxexport"
_PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: Path, model: nnx.Module, image_size: int) -> None:
  """Writes the model to a file.

  Args:
    path: The file.
    model: Maps [b, s, s, 3] float32 to logits; exported in evaluation mode.
    image_size: s.
  """
  model.eval()
  graph, state = nnx.split(model)
  # On the host: the file must not depend on the devices of the training.
  weights = jax.device_get(state)

  @jax.jit
  def logits(images: jax.Array) -> jax.Array:
    return nnx.merge(graph, weights)(augment.normalise(images))

  (b,) = export.symbolic_shape("b")
  shape = (b, image_size, image_size, 3)
  exported = export.export(logits, platforms=_PLATFORMS)(
    jax.ShapeDtypeStruct(shape, jnp.uint8)
  )
  data = bytes(exported.serialize())
  files.write(path, data + files.digest(data).encode())

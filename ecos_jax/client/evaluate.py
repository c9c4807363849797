"""Tells a client how good a model is: `python -m ecos_jax.client.evaluate`.

    python -m ecos_jax.client.evaluate --model=model.safetensors \
      --data=folder:/private/images --classes=cat,dog

The model is the file that the cloud left in `model/` of its workdir. The data
are the client's own, with labels. Nothing is written, and the number of samples
is not printed. The accuracy is about private data and no epsilon covers it, so
the client decides whom to tell.

The file is a message like a query: the name of a network, and its weights. It
holds no program. The network is the one of that name in this installation, and
everything is checked before anything is compiled.
"""

import functools
from pathlib import Path
from typing import Any

from absl import flags
from absl import logging
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import data_flags
from ecos_jax.data import pools
from ecos_jax.messages import wire
from ecos_jax.models import delivery

# Pixels to classify at once: bounds the memory, whatever size a model wants.
_PIXELS = 2**20


def load(path: Path) -> messages.Model:
  """Returns the model in a file.

  Raises:
    EcosError: There is no such file, or it is not such a model.
  """
  with errors.about("model", path):
    try:
      return messages.Model.from_bytes(wire.read_file(path))
    except messages.ProtocolError as error:
      raise errors.EcosError(
        f"{error}; take model/{delivery.FILE} of the cloud's workdir"
      ) from error


@functools.partial(jax.jit, static_argnames="graph")
def _logits(
  graph: nnx.GraphDef, state: nnx.State, images: jax.Array
) -> jax.Array:
  network: Any = nnx.merge(graph, state)
  return network(images.astype(jnp.float32) / 127.5 - 1.0)


def accuracy(
  model: messages.Model, data: pools.Source, batch_size: int = 256
) -> float:
  """Returns the model's accuracy on the labelled samples, in [0, 1].

  Args:
    model: From `load`.
    data: Images and labels; samples with label -1 are left out.
    batch_size: Images to read and classify at once; fewer if they are large.

  Raises:
    EcosError: No sample has a label, a label is not among the classes, or the
      network is not the one of that name here.
  """
  with errors.about("model", model.network):
    graph, state = nnx.split(delivery.unpack(model))
  labels = data.labels(np.arange(len(data)))
  known = np.flatnonzero(labels >= 0)
  if not len(known):
    raise errors.EcosError(
      "`data`: no sample has a label: give a folder with the folders that "
      "`classes` names, or an .npz file with arrays images and labels"
    )
  if len(known) < len(labels):
    logging.warning("samples without a label are left out")
  size, classes = model.image_size, model.classes
  if labels.max() >= classes:
    raise errors.EcosError(
      f"`data`: a label is {labels.max()}, but the model knows the {classes} "
      f"classes 0 to {classes - 1}"
    )
  batch_size = max(1, min(batch_size, _PIXELS // size**2))
  right = 0
  for start in range(0, len(known), batch_size):
    indices = known[start : start + batch_size]
    images = data.images(indices, size)
    # Padded, so that it compiles once.
    padding = [(0, batch_size - len(indices))] + [(0, 0)] * 3
    logits = _logits(graph, state, np.pad(images, padding))
    found = np.asarray(logits.argmax(-1))
    right += int((found[: len(indices)] == labels[indices]).sum())
  return right / len(known)


def main(argv: list[str]) -> None:
  """Prints the accuracy of --model on --data."""
  del argv
  f = flags.FLAGS
  model = load(Path(f.model))
  s = model.image_size
  print(
    f"model    {model.digest[:16]}: {model.network} for {model.classes} "
    f"classes, {s} x {s} pixels, {len(model.weights):,} numbers"
  )
  data = data_flags.opened(data_flags.classes(model.classes), f.ground.value)
  print(f"accuracy {100 * accuracy(model, data, f.batch_size):.1f} %")
  print(
    "         It is about your private data, and no epsilon covers it: you "
    "decide\n         whom to tell."
  )


if __name__ == "__main__":
  cli.define_path(
    "model", None, "The file model.safetensors of the cloud.", required=True
  )
  flags.DEFINE_string(
    "data",
    None,
    "The private data, with labels: folder:DIR with a folder for each class "
    "(see --classes), images:FILE.npz (arrays images and labels), "
    "tfds:NAME:SPLIT.",
    required=True,
  )
  data_flags.define_classes()
  data_flags.define_list_unreadable()
  flags.DEFINE_enum_class(
    "ground",
    config.Ground.WHITE,
    config.Ground,
    "On which the cloud lays transparent images: its --config.data.ground.",
  )
  flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
  flags.DEFINE_integer(
    "batch_size", 256, "Images to classify at once.", lower_bound=1
  )
  cli.run(main)

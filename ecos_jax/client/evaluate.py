"""Tells a client how good a model is: `python -m ecos_jax.client.evaluate`.

    python -m ecos_jax.client.evaluate --model=model.jaxexport \
      --data=folder:/private/images

The model is the file that the cloud left in `model/` of its workdir. The data
are the client's own, with labels. Nothing is written, and the number of samples
is not printed. The accuracy is about private data and no epsilon covers it, so
the client decides whom to tell.

The file is somebody else's program. It may only compute logits from images: a
program that calls anything outside StableHLO is refused before it runs.
"""

from pathlib import Path
import re

from absl import flags
from absl import logging
import jax
from jax import export
import numpy as np

from ecos_jax import cli
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.client import command
from ecos_jax.data import pools

_MAX_BYTES = 1 << 31
_CHECKSUM_BYTES = 64  # at the end of the file, sha256 in hex
_MAX_SIZE = 4096  # height and width of the images
# JAX itself puts this into a program whose batch size is free.
_OWN_CALLS = frozenset({"shape_assertion"})
_CALL = re.compile(r"custom_call(?:\s*@(\w+))?")


def _check_signature(model: export.Exported) -> None:
  """Raises ValueError unless the program maps images to logits, purely."""
  (images,), (logits,) = model.in_avals, model.out_avals
  if (
    images.dtype != np.uint8
    or images.ndim != 4
    or images.shape[1] != images.shape[2]
    or images.shape[3] != 3
    or not 0 < images.shape[1] <= _MAX_SIZE
    or logits.dtype != np.float32
    or logits.ndim != 2
  ):
    raise ValueError(
      f"it maps {images} to {logits}, not uint8[b,s,s,3] to float32[b,classes]"
    )
  if model.nr_devices != 1 or model.ordered_effects or model.unordered_effects:
    raise ValueError("it needs more than one device, or has side effects")
  calls = set(_CALL.findall(model.mlir_module())) - _OWN_CALLS
  if calls:
    raise ValueError(f"it calls outside StableHLO: {', '.join(sorted(calls))}")


def load(path: Path) -> export.Exported:
  """Returns the model in a file: uint8 [b, s, s, 3] to float32 [b, classes].

  Raises:
    EcosError: There is no such file, or it is not such a model.
  """
  if not path.is_file():
    raise errors.EcosError(f"`model`: {path} is not a file")
  with path.open("rb") as file:
    data = file.read(_MAX_BYTES + 1)
  # The parsers of a damaged file raise any of a dozen classes of exception.
  try:
    if len(data) > _MAX_BYTES:
      raise ValueError(f"it exceeds {_MAX_BYTES} bytes")
    program, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if files.digest(program).encode() != checksum:
      raise ValueError("its checksum is wrong")
    model = export.deserialize(bytearray(program))
    _check_signature(model)
  except Exception as error:
    raise errors.EcosError(
      f"`model`: {path} is not a model of ecos_jax, or is damaged: {error}; "
      "take model/model.jaxexport of the cloud's workdir"
    ) from error
  platform = export.default_export_platform()
  if platform not in model.platforms:
    raise errors.EcosError(
      f"`model`: {path} runs on {', '.join(model.platforms)}, not on {platform}"
    )
  return model


def accuracy(
  model: export.Exported, data: pools.Source, batch_size: int
) -> float:
  """Returns the model's accuracy on the labelled samples, in [0, 1].

  Args:
    model: From `load`.
    data: Images and labels; samples with label -1 are left out.
    batch_size: Images to read and classify at once.

  Raises:
    EcosError: No sample has a label, or a label is not among the classes.
  """
  labels = data.labels(np.arange(len(data)))
  known = np.flatnonzero(labels >= 0)
  if not len(known):
    raise errors.EcosError(
      "`data`: no sample has a label: give a folder with folders 0, 1, ... or "
      "with those that `classes` names, or an .npz file with arrays images and "
      "labels"
    )
  if len(known) < len(labels):
    logging.warning("samples without a label are left out")
  size, classes = model.in_avals[0].shape[1], model.out_avals[0].shape[1]
  if labels.max() >= classes:
    raise errors.EcosError(
      f"`data`: a label is {labels.max()}, but the model knows the {classes} "
      f"classes 0 to {classes - 1}"
    )
  logits = jax.jit(model.call)
  right = 0
  for start in range(0, len(known), batch_size):
    indices = known[start : start + batch_size]
    images = data.images(indices, size)
    # Padded, so that it compiles once.
    padding = [(0, batch_size - len(indices))] + [(0, 0)] * 3
    found = np.asarray(logits(np.pad(images, padding)).argmax(-1))
    right += int((found[: len(indices)] == labels[indices]).sum())
  return right / len(known)


def main(argv: list[str]) -> None:
  """Prints the accuracy of --model on --data."""
  del argv
  f = flags.FLAGS
  model = load(Path(f.model))
  classes = command.classes(model.out_avals[0].shape[1])
  data = command.open_data(classes)
  print(f"accuracy {100 * accuracy(model, data, f.batch_size):.1f} %")
  print(
    "         It is about your private data, and no epsilon covers it: you "
    "decide\n         whom to tell."
  )


if __name__ == "__main__":
  flags.DEFINE_string(
    "model", None, "The file model.jaxexport of the cloud.", required=True
  )
  flags.DEFINE_string(
    "data",
    None,
    "The private data, with labels: folder:DIR with a folder for each class "
    "(see --classes), images:FILE.npz (arrays images and labels), "
    "tfds:NAME:SPLIT.",
    required=True,
  )
  command.define_classes()
  flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
  flags.DEFINE_integer(
    "batch_size", 256, "Images to classify at once.", lower_bound=1
  )
  cli.run(main)

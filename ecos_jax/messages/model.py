"""The trained model, as the cloud delivers it: numbers, and nothing to run."""

import dataclasses
import re
from typing import Annotated

import numpy as np

from ecos_jax.config import limits
from ecos_jax.messages import fields
from ecos_jax.messages.message import Digest
from ecos_jax.messages.message import Message


@dataclasses.dataclass(frozen=True, eq=False)
class Model(Message):
  """A network by its name, and its weights.

  Attributes:
    weights: [w] float32, finite: all arrays of the network in evaluation mode,
      in the order of their names, each in C order.
    network: A name of `models.networks`.
    classes: Number of logits.
    image_size: It was trained on images [b, image_size, image_size, 3].
    layout: sha256 (hex) of the arrays' names and shapes.
  """

  KIND = "model"
  ARRAYS = ("weights",)

  weights: Annotated[
    np.ndarray, fields.array((np.float32,), limits.MAX_WEIGHTS)
  ]
  network: Annotated[str, fields.text(re.compile(r"[a-z][a-z0-9_]{0,63}"))]
  classes: Annotated[int, fields.integer(1, limits.MAX_CLASSES)]
  image_size: Annotated[int, fields.integer(1, limits.MAX_IMAGE_SIZE)]
  layout: Digest

"""A trained network as a message, and the network that a message names."""

from flax import nnx
import jax
import numpy as np

from ecos_jax import files
from ecos_jax import messages
from ecos_jax.config import limits
from ecos_jax.models import networks

FILE = "model.safetensors"


def _arrays(model: nnx.Module) -> list[tuple[tuple, nnx.Variable]]:
  """Returns path and variable of each array, in the order of their names."""
  flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
  return sorted(flat, key=lambda item: _name(item[0]))


def _name(path: tuple) -> str:
  return ".".join(map(str, path))


def _layout(arrays: list[tuple[tuple, nnx.Variable]]) -> str:
  lines = [f"{_name(path)} {array.shape}\n" for path, array in arrays]
  return files.digest("".join(lines).encode())


def fits(model: nnx.Module) -> bool:
  """Returns whether the network is small enough for a message."""
  return sum(array.size for _, array in _arrays(model)) <= limits.MAX_WEIGHTS


def pack(
  model: nnx.Module, network: str, classes: int, image_size: int
) -> messages.Model:
  """Returns a trained network as a message.

  Args:
    model: The network.
    network: Its name in `networks`.
    classes: Number of logits.
    image_size: Height and width of the images it was trained on.
  """
  arrays = _arrays(model)
  return messages.Model(
    weights=np.concatenate(
      [np.asarray(array[...], np.float32).ravel() for _, array in arrays]
    ),
    network=network,
    classes=classes,
    image_size=image_size,
    layout=_layout(arrays),
  )


def unpack(message: messages.Model) -> nnx.Module:
  """Returns the network that a message names, in evaluation mode.

  It is made by the code here, from the name; the message gives only numbers.

  Args:
    message: From the cloud; not trusted.

  Raises:
    ProtocolError: There is no such network here, or it has other arrays.
  """
  if message.network not in networks.names():
    raise messages.ProtocolError(
      f"network: {message.network} is not known here; it must be one of "
      f"{', '.join(networks.names())}"
    )
  # Nothing is allocated before the shapes are known to fit.
  model = nnx.eval_shape(
    lambda: networks.get(message.network, message.classes, nnx.Rngs(0))
  )
  arrays = _arrays(model)
  if _layout(arrays) != message.layout:
    raise messages.ProtocolError(
      f"layout: the network {message.network} of the cloud has other arrays "
      "than the one here: cloud and client need the same ecos_jax"
    )
  ends = np.cumsum([array.size for _, array in arrays])
  if ends[-1] != len(message.weights):
    raise messages.ProtocolError(
      f"weights must be {ends[-1]} numbers for {message.network} with "
      f"{message.classes} classes, got {len(message.weights)}"
    )
  parts = np.split(message.weights, ends[:-1])
  state = [
    (path, array.replace(jax.numpy.asarray(part.reshape(array.shape))))
    for (path, array), part in zip(arrays, parts, strict=True)
  ]
  nnx.update(model, nnx.from_flat_state(state))
  model.eval()
  return model

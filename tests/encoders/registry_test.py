import dataclasses
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.encoders import hog
from ecos_jax.encoders import registry


def random_images(n):
  return np.random.default_rng(n).integers(0, 256, (n, 28, 28, 3), np.uint8)


@pytest.mark.parametrize(("name", "d"), [("hog", 72), ("hog_grey", 121)])
def test_hog_is_of_28_pixels(name, d):
  encoder = registry.get(name)
  assert (encoder.name, encoder.image_size) == (name, 28)
  assert encoder.dimension == d
  assert registry.encode(encoder, random_images(3)).shape == (3, d)
  assert registry.get(name) is encoder
  assert name in registry.names()


@pytest.mark.parametrize(
  ("name", "digest"),
  [
    ("hog", "2a515b3f66dec1ec6f141749a287bbe3468a43e3b652b40812ce7d4f70c88777"),
    (
      "hog_grey",
      "b80217557918877660a631706f4d5e49bed9053f6bad99d7c621d43aa807dc18",
    ),
  ],
)
def test_the_digest_stays(name, digest):
  # Queries carry it: another digest makes old clients and clouds refuse.
  assert registry.get(name).digest == digest


def test_an_unknown_name_is_told_with_those_there_are():
  with pytest.raises(errors.EcosError, match=r"'sift'.*encoder\.name.*hog"):
    registry.get("sift")


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 40])
def test_encode_equals_the_encoder_whatever_the_batches(n):
  images = random_images(n)
  features = registry.encode(registry.get("hog"), images, batch_size=16)
  assert features.dtype == np.float32
  assert features.shape == (n, 72)
  np.testing.assert_allclose(features, hog.hog(images), atol=1e-6)


def test_encode_does_not_depend_on_the_batch_a_sample_is_in():
  images = random_images(50)
  encoder = registry.get("hog")
  whole = registry.encode(encoder, images, batch_size=16)
  part = registry.encode(encoder, images[7:], batch_size=16)
  np.testing.assert_array_equal(whole[7:], part)


def test_encode_compiles_once():
  traces = []

  def mean(images):
    traces.append(images.shape)
    return images.astype(jnp.float32).mean((1, 2))

  encoder = dataclasses.replace(
    registry.get("hog"), name="mean", dimension=3, apply=mean
  )
  for n in (3, 100, 7):
    features = registry.encode(encoder, random_images(n), batch_size=8)
    expected = random_images(n).mean((1, 2))
    np.testing.assert_allclose(features, expected, rtol=1e-5)
  assert traces == [(8, 28, 28, 3)]


@pytest.mark.parametrize(
  "images", [np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 28, 28, 3))]
)
def test_encode_refuses_another_shape_or_type(images):
  with pytest.raises(ValueError, match=r"hog wants uint8 \[n, 28, 28, 3\]"):
    registry.encode(registry.get("hog"), images)


def test_the_identity_is_of_features_only():
  assert registry.identity(7).dimension == 7
  assert registry.identity(7).digest != registry.identity(8).digest
  with pytest.raises(errors.EcosError, match=r"identity is for data that are"):
    registry.get("identity")


def test_an_unknown_name_lists_the_names_whatever_else_is_set():
  with pytest.raises(errors.EcosError, match=r"one of hog, .*module:function"):
    registry.get("nope", image_size=64)


def test_settings_of_pretrained_encoders_are_refused_for_others():
  # A configuration may set it for whichever encoder is named.
  assert registry.get("hog", image_size=32) is not None
  with pytest.raises(errors.EcosError, match=r"encoder\.dtype`=bfloat16.*hog"):
    registry.get("hog", dtype="bfloat16")


# A user's own encoder.


def test_the_example_in_the_documentation_is_an_encoder(tmp_path, monkeypatch):
  page = (Path(__file__).parents[2] / "docs/own_data.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  [block] = [block for block in blocks if "registry.Encoder" in block]
  name = re.search(r"encoder\.name=(\w+):colours", page)[1]
  (tmp_path / f"{name}.py").write_text(block)
  monkeypatch.syspath_prepend(tmp_path)
  encoder = registry.get(f"{name}:colours")
  images = np.full((5, 32, 32, 3), 51, np.uint8)
  np.testing.assert_allclose(registry.encode(encoder, images), 0.2, atol=1e-6)
  assert len(encoder.digest) == 64


def mine():
  def apply(factor, images):
    return factor * images.astype(jnp.float32).mean((1, 2))

  return registry.Encoder(
    name="mine",
    image_size=4,
    dimension=3,
    settings={"version": 1},
    digest="",
    apply=jax.tree_util.Partial(apply, jnp.float32(2.0)),
  )


def other():
  return dataclasses.replace(
    mine(), apply=jax.tree_util.Partial(mine().apply.func, jnp.float32(3.0))
  )


def test_an_encoder_of_ones_own_is_named_by_its_function(tmp_path, monkeypatch):
  (tmp_path / "own_encoder.py").write_text(
    "from tests.encoders.registry_test import mine, other\n"
    "nothing = lambda: 3\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  encoder = registry.get("own_encoder:mine")
  assert encoder.name == "own_encoder:mine"
  images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
  np.testing.assert_allclose(
    registry.encode(encoder, images, 4), 2 * images.mean((1, 2)), rtol=1e-5
  )
  # Its weights are part of the digest.
  assert (
    encoder.settings["weights"]
    != (registry.get("own_encoder:other").settings["weights"])
  )
  for name in ("own_encoder:none", "no_such_module:mine"):
    with pytest.raises(errors.EcosError, match=r"cannot be loaded"):
      registry.get(name)
  with pytest.raises(errors.EcosError, match=r"must return .* got int"):
    registry.get("own_encoder:nothing")


_WRONG = """
import dataclasses
import jax.numpy as jnp
import numpy as np
from tests.encoders.registry_test import mine

def of(apply):
  return lambda: dataclasses.replace(mine(), apply=apply)

mean = lambda images: images.astype(jnp.float32).mean((1, 2))
column = of(lambda images: mean(images)[:, :1])
once = of(lambda images: mean(images)[:1])
rank = of(lambda images: images.astype(jnp.float32))
host = of(lambda images: np.asarray(images).mean((1, 2)))
def raises():
  raise OSError("no such disk")
"""


@pytest.mark.parametrize(
  ("function", "message"),
  [
    ("column", r"must give \[b, 3\].*\(2, 1\)"),
    ("once", r"must give \[b, 3\].*\(1, 3\)"),
    ("rank", r"must give \[b, 3\].*\(2, 4, 4, 3\)"),
    ("host", r"fails on uint8 \[b, 4, 4, 3\]: TracerArrayConversionError"),
    ("raises", r"cannot be loaded: OSError: no such disk"),
  ],
)
def test_an_encoder_of_ones_own_is_checked(
  function, message, tmp_path, monkeypatch
):
  (tmp_path / "wrong_encoder.py").write_text(_WRONG)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(
    errors.EcosError, match=f"wrong_encoder:{function} {message}"
  ):
    registry.get(f"wrong_encoder:{function}")

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.client import answering
from ecos_jax.client import encoding
from ecos_jax.client import probing
from ecos_jax.encoders import registry
from ecos_jax.privacy import ledger as ledger_lib
from ecos_jax.privacy import mechanisms
from tests.client.queries import query_of

_HOG = registry.get("hog")
_IMAGES = np.random.default_rng(5).integers(0, 256, (20, 28, 28, 3), np.uint8)


def _means(images):
  return images.astype(jnp.float32).mean((1, 2))


def _of_batch(images):
  means = _means(images)
  return (means - means.mean(0)) / means.std(0)


def _of_neighbour(images):
  return _means(images).at[1:].add(_means(images)[:-1] * 1e-6)


def _of_place(images):
  return _means(images) + jnp.arange(len(images))[:, None]


def _of_largest(images):
  return _means(images) / images.max()


def _of_smallest(images):
  return _means(images - images.min())


def _encoder(apply, size=28):
  return registry.Encoder("mine", size, 3, {}, "0" * 64, apply)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
@pytest.mark.parametrize("name", ["hog", "hog_grey"])
def test_encoders_of_the_package_do_not_mix_samples(name, batch):
  assert probing.seconds(registry.get(name), batch) > 0


@pytest.mark.parametrize(
  "mixing", [_of_batch, _of_neighbour, _of_place, _of_largest, _of_smallest]
)
def test_an_encoder_that_mixes_samples_is_refused_before_anything_is_spent(
  mixing, tmp_path
):
  encoder = _encoder(mixing)
  probing.seconds(_encoder(_means), 16)
  path = tmp_path / "ledger"
  ledger_lib.create(path, max_epsilon=1.0)
  query = query_of(np.zeros((2, 3)), encoder)
  mechanism = mechanisms.Mechanism.of(None, 10.0, 0.8, 1e-5, "add_remove")
  with pytest.raises(errors.EcosError, match="mine gives an image other"):
    answering.answer_query(
      query,
      lambda: encoding.opened(query, _IMAGES, encoder, 16),
      mechanism,
      answering.Account(path),
    )
  assert not ledger_lib.read(path).entries


def test_large_images_are_encoded_a_few_at_once():
  """1,024 images of 1,024 pixels would take 9 GB."""
  large = dataclasses.replace(_HOG, image_size=1024)
  assert probing.batch_size(large, 1024) == 4
  assert probing.batch_size(_HOG, 1024) == 1024
  assert probing.batch_size(_HOG, 7) == 7
  assert probing.batch_size(dataclasses.replace(_HOG, image_size=9999), 7) == 1
  seen = []

  def apply(images):
    seen.append(images.shape)
    return jax.jit(_means)(images)

  encoder = _encoder(apply, 1024)
  query = query_of(np.zeros((2, 3)), encoder)
  images = np.zeros((5, 1024, 1024, 3), np.uint8)
  assert (
    len(np.concatenate(list(encoding.opened(query, images, encoder).blocks())))
    == 5
  )
  devices = jax.local_device_count()
  assert {shape[0] * devices for shape in seen} == {max(4, devices)}


def test_the_owner_is_told_what_encoding_takes():
  told = probing.describe(_HOG, 1024)
  assert "28 x 28 pixels with hog, 1024 at once" in told
  assert "s for 1,000 of them" in told and "MB" in told

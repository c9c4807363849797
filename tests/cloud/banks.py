"""A small pool, an encoder of three numbers, and banks of them."""

import fsspec
import jax.numpy as jnp
import numpy as np

from ecos_jax.cloud import encode
from ecos_jax.cloud import storage
from ecos_jax.data import pools
from ecos_jax.encoders import registry

BankError = storage.BankError


class Rows:
  """Rows in memory, in place of a feature bank."""

  def __init__(self, features):
    self.features = features
    self.shape = features.shape
    self.dtype = features.dtype

  def blocks(self, rows, part=slice(None)):
    for start in range(0, len(self.features), rows):
      yield start, self.features[start : start + rows][part]

  def take(self, indices):
    return self.features[indices].astype(np.float32)


def mean_colours(images):
  return jnp.mean(images.astype(jnp.float32), axis=(1, 2)) / 255


def make_encoder(apply=mean_colours, digest="e" * 64):
  return registry.Encoder("colours", 4, 3, {}, digest, apply)


ENCODER = make_encoder()


def make_pool(n=103, seed=0):
  random = np.random.default_rng(seed)
  images = random.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
  return pools.Pool([pools.ArraySource("noise", images, None)])


POOL = make_pool()


def features_of(pool):
  return registry.encode(ENCODER, pool.images(np.arange(len(pool)), 4))


def build(path, pool=POOL, encoder=ENCODER, **options):
  options = {"dtype": "float32", "shard_rows": 20, "batch_size": 8} | options
  return encode.build(path, pool, encoder, **options)


def turned(n=3000, d=12, offset=0.0, seed=0):
  """Returns features with components of very different variance."""
  random = np.random.default_rng(seed)
  mixed = random.normal(size=(n, d)) * np.geomspace(3, 0.2, d)
  turn = np.linalg.qr(random.normal(size=(d, d)))[0]
  return (mixed @ turn + offset).astype(np.float32)


def read(bank, rows=7):
  return np.concatenate([block.copy() for _, block in bank.blocks(rows)])


def save(place, arrays):
  fs, root = fsspec.core.url_to_fs(str(place))
  fs.makedirs(root, exist_ok=True)
  for name, array in arrays.items():
    with fs.open(f"{root}/{name}.npy", "wb") as file:
      np.save(file, array)

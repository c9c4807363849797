import json

import numpy as np
import pytest

from ecos_jax.data import loader
from ecos_jax.data import pools
from ecos_jax.data import proxy


def _source(samples):
  return loader.Arrays(
    {
      "image": np.zeros((samples, 4, 4, 3), np.uint8),
      "label": np.arange(samples),
    }
  )


def _labels(iterator, batches):
  return [next(iterator)["label"] for _ in range(batches)]


@pytest.mark.parametrize("samples, batch_size", [(10, 4), (3, 8), (8, 8)])
def test_every_epoch_has_every_sample_once_in_a_new_order(samples, batch_size):
  epochs = 4
  batches = loader.batches(_source(samples), batch_size, seed=1)
  seen = np.concatenate(_labels(batches, -(-epochs * samples // batch_size)))[
    : epochs * samples
  ].reshape(epochs, samples)
  np.testing.assert_array_equal(
    np.sort(seen, 1), np.tile(np.arange(samples), (epochs, 1))
  )
  assert len({tuple(epoch) for epoch in seen}) > 1


def test_the_seed_decides_the_order():
  orders = [
    np.concatenate(_labels(loader.batches(_source(50), 10, seed), 5)).tolist()
    for seed in (1, 1, 2)
  ]
  assert orders[0] == orders[1] != orders[2]


def test_goes_on_from_a_saved_state():
  iterator = loader.batches(_source(10), 4, seed=3)
  _labels(iterator, 7)
  state = json.loads(json.dumps(iterator.get_state()))
  expected = _labels(iterator, 6)
  other = loader.batches(_source(10), 4, seed=3)
  other.set_state(state)
  np.testing.assert_array_equal(_labels(other, 6), expected)


def test_processes_split_each_batch():
  whole = _labels(loader.batches(_source(10), 6, seed=5), 5)
  parts = [
    _labels(loader.batches(_source(10), 6, 5, process, 3), 5)
    for process in range(3)
  ]
  np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_part_of_a_pool():
  images = np.arange(8, dtype=np.uint8)[:, None, None, None]
  pool = pools.Pool(
    [
      pools.ArraySource("a", np.tile(images[:4], (1, 6, 6, 3)), np.arange(4)),
      pools.ArraySource("b", np.tile(images[4:], (1, 6, 6, 3))),
    ]
  )
  part = loader.PoolPart(pool, np.array([7, 2, 5]), size=6)
  assert len(part) == 3
  batch = part.batch(np.array([2, 0, 1]))
  assert batch["image"].shape == (3, 6, 6, 3)
  np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [5, 7, 2])
  np.testing.assert_array_equal(batch["label"], [-1, -1, 2])


def test_proxy_in_memory_and_read_at_each_access_are_the_same(tmp_path):
  rng = np.random.default_rng(0)
  pool = pools.Pool(
    [
      pools.ArraySource("a", rng.integers(0, 256, (6, 9, 7, 3), np.uint8)),
      pools.ArraySource("b", rng.integers(0, 256, (6, 8, 8, 3), np.uint8)),
    ]
  )
  indices = np.array([1, 7, 11, 0])
  proxy.write(tmp_path / "proxy", pool, indices, indices, indices % 3)
  path = tmp_path / "proxy"
  rows = np.array([3, 1, 2])
  memory = loader.proxy_source(path, size=8).batch(rows)
  read = loader.proxy_source(path, size=8, memory_budget=0).batch(rows)
  for name, expected in {
    "image": pool.images(indices[rows], 8),
    "label": indices[rows] % 3,
    "index": indices[rows],
    "cluster": indices[rows],
  }.items():
    np.testing.assert_array_equal(memory[name], expected)
    np.testing.assert_array_equal(read[name], expected)

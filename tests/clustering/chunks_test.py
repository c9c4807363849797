import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax.clustering import chunks


def test_scores_stay_within_the_memory_budget():
  mesh = chunks.single_device_mesh()
  for k in (1, 100, 10**5):
    shapes = chunks.plan((10**7, 512), k, mesh, memory_budget=64 << 20)
    assert shapes.block * k * 4 <= 16 << 20
    assert shapes.chunk * 512 * 4 <= 16 << 20


def test_chunk_shapes_are_shared_by_many_lengths():
  mesh = chunks.single_device_mesh()
  plans = {chunks.plan((n, 72), 100, mesh) for n in range(1, 10**6, 97)}
  assert len(plans) < 200


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("n", [10**6, 1_940_001, 10**8])
def test_the_last_of_many_chunks_leaves_devices_idle_for_little(n, devices):
  mesh = types.SimpleNamespace(
    size=devices, devices=np.array(jax.devices() * devices)
  )
  chunk, block = chunks.plan((n, 128), 1000, mesh)
  rows = chunk // devices
  assert rows % block == 0
  # Device 0 has the most to do.
  busy = n // chunk * rows + min(n % chunk, rows)
  assert busy < 1.02 * n / devices


def test_aligned_features_are_not_copied():
  n, d = 2048, 32
  memory = np.zeros(n * d + 32, np.float32)
  begin = -memory.ctypes.data % 64 // 4
  mesh = chunks.single_device_mesh()
  features = memory[begin : begin + n * d].reshape(n, d)
  assert chunks.shares_memory(features, mesh)
  for start, valid, chunk in chunks.read(features, 512, mesh):
    assert valid == 512
    assert chunk.unsafe_buffer_pointer() == features.ctypes.data + 4 * start * d
  late = memory[begin + 4 : begin + 4 + n * d].reshape(n, d)
  assert not chunks.shares_memory(late, mesh)
  assert not chunks.shares_memory(features.T.copy().T, mesh)


def test_chunks_in_memory_are_larger_but_no_longer_than_the_features():
  mesh = chunks.single_device_mesh()
  for n in (5 * 10**4, 10**5, 10**6, 10**8):
    small = chunks.plan((n, 128), 1000, mesh, memory_budget=256 << 20)
    large = chunks.plan(
      (n, 128), 1000, mesh, memory_budget=256 << 20, in_memory=True
    )
    assert small.chunk <= large.chunk <= n
    assert large.chunk * 128 * 4 <= 64 << 20


def test_every_valid_row_is_fresh_once():
  features = np.arange(20, dtype=np.float32).reshape(10, 2)

  def local(chunk, valid):
    def body(total, start, features, fresh):
      del start
      return total + jnp.sum(jnp.where(fresh[:, None], features, 0), axis=0)

    return chunks.scan_blocks(body, jnp.zeros(2), chunk, valid, block=4)

  scan = jax.jit(
    jax.shard_map(
      local,
      mesh=chunks.single_device_mesh(),
      in_specs=(jax.P("data"), jax.P()),
      out_specs=jax.P("data"),
    )
  )
  for valid in (0, 4, 7, 10):
    got = scan(features, valid)
    np.testing.assert_array_equal(got, features[:valid].sum(axis=0))

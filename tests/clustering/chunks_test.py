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


def test_chunks_share_the_memory_of_unaligned_features():
  n, d = 4096, 32
  memory = np.zeros(n * d + 32, np.float32)
  begin = -memory.ctypes.data % 64 // 4 + 4
  features = memory[begin : begin + n * d].reshape(n, d)
  mesh = chunks.single_device_mesh()
  assert chunks.offset(features, 512, mesh) == 4
  parts = list(chunks.read_shared(features, 512, mesh, 4))
  assert [part[:3] for part in parts] == [(i, 0, 512) for i in range(0, n, 512)]
  # The first and the last would begin or end outside.
  for start, *_, chunk in parts[1:-1]:
    address = features.ctypes.data + 4 * (start * d - 4)
    assert chunk.unsafe_buffer_pointer() == address


def test_the_last_chunk_overlaps_instead_of_being_copied():
  n, d = 2000, 32
  memory = np.zeros(n * d + 16, np.float32)
  begin = -memory.ctypes.data % 64 // 4
  features = memory[begin : begin + n * d].reshape(n, d)
  mesh = chunks.single_device_mesh()
  assert chunks.offset(features, 768, mesh) == 0
  parts = list(chunks.read_shared(features, 768, mesh, 0))
  assert [part[:3] for part in parts] == [
    (0, 0, 768),
    (768, 0, 768),
    (1232, 304, 768),
  ]
  for start, *_, chunk in parts:
    assert chunk.unsafe_buffer_pointer() == features.ctypes.data + 4 * start * d


def test_chunks_in_memory_are_larger_but_no_longer_than_the_features():
  mesh = chunks.single_device_mesh()
  for n in (5 * 10**4, 10**5, 10**6, 10**8):
    small = chunks.plan((n, 128), 1000, mesh, memory_budget=256 << 20)
    large = chunks.plan(
      (n, 128), 1000, mesh, memory_budget=256 << 20, in_memory=True
    )
    assert small.chunk <= large.chunk <= n
    assert large.chunk * 128 * 4 <= 64 << 20


def test_memory_that_cannot_be_shared():
  mesh = chunks.single_device_mesh()
  memory = np.zeros(4096 * 4 + 64, np.float32)
  begin = -memory.ctypes.data % 64 // 4
  aligned = memory[begin : begin + 4096 * 4].reshape(4096, 4)
  assert chunks.offset(aligned, 512, mesh) == 0
  assert chunks.offset(aligned.T.copy().T, 512, mesh) is None
  # The rows begin more than one row too late.
  late = memory[begin + 8 : begin + 8 + 4096 * 4].reshape(4096, 4)
  assert chunks.offset(late, 512, mesh) is None


@pytest.mark.parametrize("first, valid", [(0, 10), (3, 8), (4, 4), (9, 10)])
def test_only_fresh_rows_are_seen(first, valid):
  features = np.arange(20, dtype=np.float32).reshape(10, 2)

  def local(chunk):
    def body(total, start, features, fresh):
      del start
      return total + jnp.sum(jnp.where(fresh[:, None], features, 0), axis=0)

    return chunks.scan_blocks(
      body, jnp.zeros(2), chunk, valid, block=4, first=first
    )

  got = jax.shard_map(
    local,
    mesh=chunks.single_device_mesh(),
    in_specs=jax.P("data"),
    out_specs=jax.P("data"),
  )(features)
  np.testing.assert_array_equal(got, features[first:valid].sum(axis=0))

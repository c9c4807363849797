"""Compiles for the chips that matter, without one; see `make aot`.

What the compilers say of memory is asserted and printed as the table that
docs/scaling.md has. Nothing runs, so nothing is timed.
"""

import importlib.util
import os

from flax import nnx
import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax import config as config_lib
from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kernels
from ecos_jax.clustering import lloyd
from ecos_jax.data import loader
from ecos_jax.encoders import registry
from ecos_jax.models import networks
from ecos_jax.training import step as step_lib
from ecos_jax.training import tasks

pytestmark = [
  pytest.mark.aot,
  pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("libtpu", "jax_cuda13_plugin"))),
    reason="needs the compilers of TPU and CUDA: run `make aot`",
  ),
]

# As an H100 SXM tells of itself.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  device_memory_size: 85520809984
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Each with the smallest topology that it comes in.
_TPUS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1"}
_CHIPS = (*_TPUS, "h100")
_SHAPES = ((10**6, 72, 100), (10**6, 128, 1000), (200_000, 512, 4096))
_MIB = 1 << 20


@pytest.fixture(scope="module", params=_CHIPS)
def chip(request):
  return request.param


@pytest.fixture(scope="module")
def mesh(chip):
  if chip == "h100":
    topology = topologies.get_topology_desc(
      "", "cuda", target_config=_H100, topology="1x1x1"
    )
  else:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(_TPUS[chip], "tpu")
  return jax.sharding.Mesh(np.array(topology.devices), ("data",))


@pytest.fixture(scope="module", autouse=True)
def uncached():
  """What is compiled for another machine cannot be read back from the cache."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  yield
  jax.config.update("jax_enable_compilation_cache", before)


@pytest.fixture(scope="module")
def table(request):
  rows = [
    "| program, on one device | chip | temporaries | scores [block, k] "
    "| GFLOP | bytes accessed |",
    "|---|---|---|---|---|---|",
  ]
  yield rows
  capture = request.config.pluginmanager.getplugin("capturemanager")
  with capture.global_and_fixture_disabled():
    print("", *rows, sep="\n")


def compiled(table, chip, name, lowered, scores=None):
  executable = lowered.compile()
  memory = executable.memory_analysis()
  assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 8 << 30
  cost = executable.cost_analysis() or {}
  # The compiler for GPU gives no costs.
  flops, accessed = cost.get("flops"), cost.get("bytes accessed")
  table.append(
    f"| {name} | {chip} | {memory.temp_size_in_bytes / _MIB:.2f} MiB | "
    f"{f'{scores / _MIB:.0f} MiB' if scores else '-'} | "
    f"{f'{flops / 1e9:.2f}' if flops else '-'} | "
    f"{f'{accessed / _MIB:.0f} MiB' if accessed else '-'} |"
  )
  return executable, memory.temp_size_in_bytes


def described(shape, dtype, mesh, *axes):
  sharding = jax.sharding.NamedSharding(mesh, jax.P(*axes))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def clustering(function, mesh, n, d, k):
  plan = chunks.plan((n, d), k, mesh)
  lowered = function.lower(
    described((plan.chunk, d), jnp.float16, mesh, "data"),
    described((), jnp.int32, mesh),
    described((k, d), jnp.float32, mesh),
    mesh=mesh,
    block=plan.block,
  )
  return lowered, plan.block


@pytest.mark.parametrize("n, d, k", _SHAPES)
@pytest.mark.parametrize(
  "name, function",
  [("assignment", assign.assign_chunk), ("Lloyd step", lloyd.plain)],
)
def test_clustering_keeps_no_scores(chip, mesh, table, name, function, n, d, k):
  lowered, block = clustering(function, mesh, n, d, k)
  scores = block * k * 4
  executable, temporaries = compiled(
    table, chip, f"{name}, {d} to {k}, blocks of {block}", lowered, scores
  )
  # On GPU a block is the chunk.
  assert temporaries < chunks.MEMORY_BUDGET * (1 if chip == "h100" else 0.5)
  # A padded copy of a block, which on GPU is the chunk, and of centroids in two
  # parts of float16.
  width = -(-d // 128) * 128
  features, centroids = block * width * 4, (k + 128) * width * 4
  assert temporaries < 1.1 * (features + 2 * centroids) + _MIB
  if chip == "h100":
    text = executable.as_text()
    assert "mosaic_gpu" in text
    assert f"[{block},{k}]" not in text
  elif name == "assignment":
    # The label and the score of each row may be temporaries, as on v5p.
    assert temporaries < scores / 50 + 8 * block


@pytest.mark.parametrize("chip", ["h100"], indirect=True)
def test_without_the_kernel_a_gpu_keeps_scores(chip, mesh, table, monkeypatch):
  monkeypatch.setenv(kernels.VARIABLE, "xla")
  jax.clear_caches()
  n, d, k = _SHAPES[1]
  lowered, block = clustering(assign.assign_chunk, mesh, n, d, k)
  name = f"assignment by XLA, {d} to {k}, blocks of {block}"
  _, temporaries = compiled(table, chip, name, lowered, block * k * 4)
  assert temporaries > block * k * 4


def test_encoder(chip, mesh, table):
  encoder = registry.get("hog")
  size = encoder.image_size
  images = described((1024 * mesh.size, size, size, 3), jnp.uint8, mesh, "data")
  lowered = jax.jit(encoder.apply).lower(images)
  _, temporaries = compiled(table, chip, "encoder hog, 1024 images", lowered)
  assert temporaries < 64 * _MIB


def test_training_step(chip, mesh, table):
  config = config_lib.Train()
  optimizer = step_lib.adamw(config)
  graph, state = jax.eval_shape(
    lambda: step_lib.start(
      networks.get("convnet", 10, nnx.Rngs(0)), optimizer, seed=0
    )
  )
  everywhere, _ = step_lib.shardings(mesh)
  state = jax.tree.map(lambda leaf: leaf.update(sharding=everywhere), state)
  task = tasks.Supervised(10, loader.Arrays({}))
  step = step_lib.jitted(task, graph, optimizer, mesh)
  size = 64 * mesh.size
  batches = {
    "labelled": {
      "image": described((size, 28, 28, 3), jnp.uint8, mesh, "data"),
      "label": described((size,), jnp.int32, mesh, "data"),
    }
  }
  lowered = step.lower(state, batches)
  _, temporaries = compiled(
    table, chip, "training step convnet, 64 images", lowered
  )
  assert temporaries < 512 * _MIB

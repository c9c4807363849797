"""Our calls, and those of `gemm`, their ceiling; these start JAX."""

from collections.abc import Iterator
import functools
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax import config
from ecos_jax import distributed
from ecos_jax.benchmark import calls
from ecos_jax.benchmark import cells
from ecos_jax.benchmark import training
from ecos_jax.client import coverage
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import sampling
from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.encoders import registry

_MEMORY_ROWS = 1 << 18
_COVERAGE_ROWS = 4096
_TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 0.0)
_MAX_ITERATIONS = 300
# Options of `kmeans.fit`, where it has them, that give plain Lloyd.
_PLAIN = {"prune": False}


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _products(features, transposed, *, mesh, block):
  """Returns the scores of the last block of each device: none is kept."""

  def local(features, transposed):
    def step(i, scores):
      del scores
      rows = jax.lax.dynamic_slice_in_dim(features, i * block, block)
      return jnp.dot(rows, transposed, precision=jax.lax.Precision.HIGHEST)

    scores = jnp.zeros((block, transposed.shape[1]))
    scores = jax.lax.pcast(scores, "data", to="varying")
    return jax.lax.fori_loop(0, len(features) // block, step, scores)

  return jax.shard_map(
    local, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data")
  )(features, transposed)


def _gemm(features: np.ndarray, centroids: np.ndarray, rows: int) -> calls.Call:
  """Returns the call of the bare product, its seconds scaled to `rows`."""
  mesh = distributed.mesh()
  n = len(features)
  block = chunks.plan(features.shape, len(centroids), mesh).block
  block = min(block, n // mesh.size)
  used = n // (block * mesh.size) * block * mesh.size
  sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
  on_devices = jax.device_put(features[:used].astype(np.float32), sharding)
  transposed = jnp.asarray(centroids.T.copy())

  def call():
    seconds, _ = calls.timed(
      lambda: _products(
        on_devices, transposed, mesh=mesh, block=block
      ).block_until_ready()
    )
    return {"seconds": seconds * rows / used, "block": block}

  return call


def _kmeans(features: np.ndarray, k: int, **options: Any) -> np.ndarray:
  known = inspect.signature(kmeans.fit).parameters
  return kmeans.fit(
    features,
    k,
    jax.random.key(1),
    mesh=distributed.mesh(),
    memory_budget=4 * features.nbytes,
    **{name: value for name, value in options.items() if name in known},
  ).centroids


class _Watched:
  """A bank that measures how long its reader waits for blocks."""

  def __init__(self, bank: bank_lib.FeatureBank):
    self._bank = bank
    self.shape, self.dtype, self.take = bank.shape, bank.dtype, bank.take
    self.waited = 0.0

  def blocks(
    self, rows: int, part: slice = slice(None)
  ) -> Iterator[tuple[int, np.ndarray]]:
    blocks = self._bank.blocks(rows, part)
    while True:
      seconds, block = calls.timed(lambda: next(blocks, None))
      self.waited += seconds
      if block is None:
        return
      yield block


def _streaming(folder: Path, options: cells.Options) -> calls.Call:
  bank = bank_lib.FeatureBank.open(folder / "bank")
  centroids = np.load(folder / "centroids.npy")

  def call():
    watched = _Watched(bank)

    def run():
      for _ in assign.stream(
        watched,
        centroids,
        mesh=distributed.mesh(),
        memory_budget=options.memory_budget,
      ):
        pass

    seconds, _ = calls.timed(run)
    return {"seconds": seconds, "waiting_share": watched.waited / seconds}

  return call


def _first_rows(folder: Path) -> np.ndarray:
  """Returns as much of a bank as suffices to know the rate in memory."""
  bank = bank_lib.FeatureBank.open(folder / "bank")
  rows = min(bank.shape[0], _MEMORY_ROWS)
  return bank.take(np.arange(rows)).astype(bank.dtype)


def _sampling(cell: cells.Cell, folder: Path) -> calls.Call:
  n, _, r, budget = cell.shape
  bank = bank_lib.FeatureBank.open(folder / "bank")
  centroids = np.load(folder / "centroids.npy")
  assignment = np.random.default_rng(1).permutation(n).astype(np.int32) % r
  quotas = np.full(r, budget // r)
  quotas[: budget % r] += 1

  def call():
    seconds, _ = calls.timed(
      lambda: sampling.decompress(
        bank,
        assignment,
        centroids,
        np.ones(r),
        quotas,
        config.Sampling(likely=1.0, central=1.0),
        jax.random.key(1),
      )
    )
    return {"seconds": seconds}

  return call


def _coverage_product(
  features: np.ndarray, centroids: np.ndarray
) -> calls.Call:
  """Returns the call of numpy's product in double precision, in blocks."""
  transposed = centroids.T.astype(np.float64)
  rows = features.astype(np.float64)
  block = min(_COVERAGE_ROWS, len(rows))
  scores = np.empty((block, len(centroids)))

  def call():
    def run():
      for start in range(0, len(rows) - block + 1, block):
        np.matmul(rows[start : start + block], transposed, out=scores)

    seconds, _ = calls.timed(run)
    return {"seconds": seconds * len(rows) / (len(rows) // block * block)}

  return call


def our_call(
  name: str, cell: cells.Cell, options: cells.Options, folder: Path
) -> calls.Call:
  """Returns the call of `ecos_jax`, of `gemm`, of `memory`, or of `bare`.

  Args:
    name: The implementation; `memory` is ours on rows in memory, in `stream`;
      `bare` is a loop by hand, in `train`; `ecos_jax:minibatch` aims at the
      inertia of MiniBatchKMeans.
    cell: What to run.
    options: Of the run.
    folder: With the data.
  """
  mesh = distributed.mesh()
  if cell.stage == "train":
    make = training.bare if name == "bare" else training.ours
    return make(cell.shape[0])
  if cell.stage == "encode":
    encoder = registry.get(options.encoder)
    s = encoder.image_size
    images = np.random.default_rng(1).integers(
      256, size=(cell.shape[0], s, s, 3), dtype=np.uint8
    )

    def encode():
      seconds, _ = calls.timed(lambda: registry.encode(encoder, images))
      return {"seconds": seconds, "bytes": images.nbytes}

    return encode
  if cell.stage == "sample":
    return _sampling(cell, folder)
  if cell.stage == "stream":
    if name == "ecos_jax":
      return _streaming(folder, options)
    features = _first_rows(folder)
    centroids = np.load(folder / "centroids.npy")
    if name == "gemm":
      return _gemm(features, centroids, cell.shape[0])

    def in_memory():
      seconds, _ = calls.timed(
        lambda: assign.assign(
          features, centroids, mesh=mesh, memory_budget=options.memory_budget
        )
      )
      return {"seconds": seconds * cell.shape[0] / len(features)}

    return in_memory
  features, centroids = calls.load(folder)
  # Aligned as JAX wants it, as the blocks of a bank are: no copies.
  features = np.asarray(jnp.asarray(features))
  if cell.stage == "coverage":
    if name == "gemm":
      return _coverage_product(features, centroids)

    def vote():
      seconds, _ = calls.timed(lambda: coverage.coverage(features, centroids))
      return {"seconds": seconds}

    return vote
  if name == "gemm":
    return _gemm(features, centroids, len(features))
  if cell.stage == "assign":
    return calls.assigning(
      lambda: np.asarray(assign.assign(features, centroids, mesh=mesh).labels),
      features,
      centroids,
    )
  k = len(centroids)
  if cell.stage == "fit":
    return calls.fitting(
      lambda iterations: _kmeans(
        features,
        k,
        init=centroids,
        iterations=iterations,
        tolerance=0.0,
        **_PLAIN,
      ),
      features,
      cell.lengths,
    )
  known = calls.reference(folder)
  return calls.converging(
    lambda tolerance: _kmeans(
      features, k, iterations=_MAX_ITERATIONS, tolerance=tolerance
    ),
    _TOLERANCES,
    features,
    known["minibatch" if name.endswith(":minibatch") else "lloyd"],
    calls.PATIENCE * known["seconds"],
  )

"""Our calls, and those of `gemm`, their limit; these start JAX."""

import collections
from collections.abc import Iterator, Sequence
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax import config
from ecos_jax import distributed
from ecos_jax.benchmark import calls
from ecos_jax.benchmark import cases
from ecos_jax.benchmark import timing
from ecos_jax.benchmark import training
from ecos_jax.client import coverage
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import codebook
from ecos_jax.cloud import sampling
from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.encoders import registry

_MEMORY_ROWS = 1 << 18
_COVERAGE_ROWS = 4096
_MAX_ITERATIONS = 300


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _products(features, transposed, *, mesh, block):
  """Returns the scores of the last block of each device; no others are kept."""

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
    seconds, _ = timing.timed(
      lambda: _products(
        on_devices, transposed, mesh=mesh, block=block
      ).block_until_ready()
    )
    return {"seconds": seconds * rows / used, "block": block}

  return call


class _KMeans:
  """This package's k-means; see `calls.KMeans`."""

  efforts: Sequence[float] = (
    1e-1,
    3e-2,
    1e-2,
    3e-3,
    1e-3,
    3e-4,
    1e-4,
    3e-5,
    1e-5,
    0.0,
  )

  def _fit(self, features, k, **options):
    return kmeans.fit(
      features,
      k,
      jax.random.key(1),
      mesh=distributed.mesh(),
      memory_budget=4 * features.nbytes,
      **options,
    ).centroids

  def assign(self, features, centroids):
    mesh = distributed.mesh()
    return lambda: np.asarray(
      assign.assign(features, centroids, mesh=mesh).labels
    )

  def fit(self, features, init, iterations):
    return self._fit(
      features,
      len(init),
      init=init,
      iterations=iterations,
      tolerance=0.0,
      prune=False,
    )

  def cluster(self, features, k, effort):
    return self._fit(features, k, iterations=_MAX_ITERATIONS, tolerance=effort)


def _kmeans(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of `assign`, `fit` or `converge`."""
  del options
  # Aligned as JAX wants it, as the blocks of a bank are: no copies.
  features = np.asarray(jnp.asarray(np.load(folder / "features.npy")))
  centroids = np.load(folder / "centroids.npy")
  if name == "gemm":
    return _gemm(features, centroids, len(features))
  return calls.kmeans(_KMeans(), name, case, (features, centroids), folder)


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
      seconds, block = timing.timed(lambda: next(blocks, None))
      self.waited += seconds
      if block is None:
        return
      yield block


def _stream(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of `stream`.

  `memory` and `gemm` run on as many rows as suffice to know their rates.
  """
  bank = bank_lib.FeatureBank.open(folder / "bank")
  centroids = np.load(folder / "centroids.npy")
  mesh, budget = distributed.mesh(), options.memory_budget
  if name != "ecos_jax":
    rows = min(bank.shape[0], _MEMORY_ROWS)
    features = bank.take(np.arange(rows)).astype(bank.dtype)
    if name == "gemm":
      return _gemm(features, centroids, case.shape[0])

  def in_memory():
    seconds, _ = timing.timed(
      lambda: assign.assign(
        features, centroids, mesh=mesh, memory_budget=budget
      )
    )
    return {"seconds": seconds * case.shape[0] / len(features)}

  def stream():
    watched = _Watched(bank)
    parts = assign.stream(watched, centroids, mesh=mesh, memory_budget=budget)
    seconds, _ = timing.timed(lambda: collections.deque(parts, 0))
    return {"seconds": seconds, "waiting_share": watched.waited / seconds}

  return in_memory if name == "memory" else stream


def _sample(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of `sample`, on clusters of equal size."""
  del name, options
  n, _, r, budget = case.shape
  bank = bank_lib.FeatureBank.open(folder / "bank")
  centroids = np.load(folder / "centroids.npy")
  assignment = np.random.default_rng(1).permutation(n).astype(np.int32) % r
  quotas = np.full(r, budget // r)
  quotas[: budget % r] += 1
  book = codebook.Codebook(centroids, np.bincount(assignment), assignment)
  return calls.timed(
    lambda: sampling.decompress(
      bank,
      book,
      np.ones(r),
      quotas,
      config.Sampling(likely=1.0, central=1.0),
      jax.random.key(1),
    )
  )


def _coverage(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of `coverage`; of `gemm`, numpy's product in blocks."""
  del case, options
  features = np.asarray(jnp.asarray(np.load(folder / "features.npy")))
  centroids = np.load(folder / "centroids.npy")
  if name != "gemm":
    return calls.timed(lambda: coverage.coverage(features, centroids))
  transposed = centroids.T.astype(np.float64)
  rows = features.astype(np.float64)
  block = min(_COVERAGE_ROWS, len(rows))
  scores = np.empty((block, len(centroids)))

  def run():
    for start in range(0, len(rows) - block + 1, block):
      np.matmul(rows[start : start + block], transposed, out=scores)

  def call():
    seconds, _ = timing.timed(run)
    return {"seconds": seconds * len(rows) / (len(rows) // block * block)}

  return call


def _encode(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of `encode`, on random images."""
  del name, folder
  encoder = registry.get(options.encoder)
  side = encoder.image_size
  images = np.random.default_rng(1).integers(
    256, size=(case.shape[0], side, side, 3), dtype=np.uint8
  )
  return calls.timed(
    lambda: registry.encode(encoder, images), bytes=images.nbytes
  )


def _train(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of `train`."""
  del options, folder
  make = training.bare if name == "bare" else training.ours
  return make(case.shape[0])


_CALLS = {
  "encode": _encode,
  "assign": _kmeans,
  "fit": _kmeans,
  "converge": _kmeans,
  "stream": _stream,
  "coverage": _coverage,
  "sample": _sample,
  "train": _train,
}


def load(name: str) -> None:
  """Starts JAX, whose memory is not counted."""
  del name
  jax.local_devices()


def call(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of one of `cases.Stage.ours`.

  Args:
    name: The implementation.
    case: What to run.
    options: Of the run.
    folder: With the data.
  """
  return _CALLS[case.stage](name, case, options, folder)

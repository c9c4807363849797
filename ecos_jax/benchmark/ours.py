"""Our calls, and those of `gemm`, their limit; these start JAX."""

import collections
from collections.abc import Iterator, Sequence
import functools
from pathlib import Path
import tempfile

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ecos_jax import config
from ecos_jax import distributed
from ecos_jax.benchmark import calls
from ecos_jax.benchmark import cases
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import codebook
from ecos_jax.cloud import sampling
from ecos_jax.clustering import assign
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.data import loader
from ecos_jax.encoders import registry
from ecos_jax.models import networks
from ecos_jax.training import augment
from ecos_jax.training import loop
from ecos_jax.training import tasks

_MEMORY_ROWS = 1 << 18
_MAX_ITERATIONS = 300
# Training: classes, images, steps, and batches of the hand-written loop.
_CLASSES, _IMAGES, _STEPS, _BATCHES = 10, 2000, 100, 8


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

  def product():
    _products(
      on_devices, transposed, mesh=mesh, block=block
    ).block_until_ready()

  return lambda: {
    "seconds": calls.timed(product)[0] * rows / used,
    "block": block,
  }


class _KMeans:
  """This package's k-means; see `calls.KMeans`."""

  efforts: Sequence[float] = (
    *(1e-1, 3e-2, 1e-2, 3e-3, 1e-3),
    *(3e-4, 1e-4, 3e-5, 1e-5, 0.0),
  )

  def assign(self, features, centroids):
    mesh = distributed.mesh()
    return lambda: np.asarray(
      assign.assign(features, centroids, mesh=mesh).labels
    )

  def fit(self, features, k, effort, init=None):
    whole = init is None
    return kmeans.fit(
      features,
      k,
      jax.random.key(1),
      init=init,
      iterations=_MAX_ITERATIONS if whole else effort,
      tolerance=effort if whole else 0.0,
      prune=whole,
      mesh=distributed.mesh(),
      memory_budget=4 * features.nbytes,
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


def _stream(name: str, n: int, budget: int, folder: Path) -> calls.Call:
  """Returns the call of `stream`.

  `memory` and `gemm` run on as many rows as suffice to know their rates.
  """
  bank = bank_lib.FeatureBank.open(folder / "bank")
  centroids = np.load(folder / "centroids.npy")
  options = {"mesh": distributed.mesh(), "memory_budget": budget}
  if name != "ecos_jax":
    rows = min(n, _MEMORY_ROWS)
    features = bank.take(np.arange(rows)).astype(bank.dtype)
    if name == "gemm":
      return _gemm(features, centroids, n)

  def in_memory():
    seconds, _ = calls.timed(
      lambda: assign.assign(features, centroids, **options)
    )
    return {"seconds": seconds * n / len(features)}

  def stream():
    watched = _Watched(bank)
    parts = assign.stream(watched, centroids, **options)
    seconds, _ = calls.timed(lambda: collections.deque(parts, 0))
    return {"seconds": seconds, "waiting_share": watched.waited / seconds}

  return in_memory if name == "memory" else stream


def sample(features: chunks.Features, r: int, budget: int) -> calls.Call:
  """Returns the call of `sample`: k-center in r clusters of equal size.

  Args:
    features: A bank, or an array [n, d].
    r: Number of clusters.
    budget: Number of samples to choose in all.
  """
  n, d = features.shape
  rng = np.random.default_rng(1)
  assignment = rng.permutation(n).astype(np.int32) % r
  centroids = rng.standard_normal((r, d), np.float32)
  book = codebook.Codebook(centroids, np.bincount(assignment), assignment)
  quotas = np.full(r, budget // r)
  quotas[: budget % r] += 1
  options = config.Sampling()

  def choose():
    sampling.decompress(
      features, book, np.ones(r), quotas, options, jax.random.key(1)
    )

  return lambda: {"seconds": calls.timed(choose)[0]}


def _data() -> dict[str, np.ndarray]:
  rng, size = np.random.default_rng(1), config.Train().image_size
  return {
    "image": rng.integers(256, size=(_IMAGES, size, size, 3), dtype=np.uint8),
    "label": rng.integers(_CLASSES, size=_IMAGES),
  }


def training(batch_size: int) -> calls.Call:
  """Returns the call of our loop with its input; checkpoints do not count."""
  options = config.Train(
    steps=_STEPS, batch_size=batch_size, checkpoint_every=_STEPS
  )
  task = tasks.Supervised(_CLASSES, loader.Arrays(_data()))

  def call():
    with tempfile.TemporaryDirectory() as folder:
      result = loop.train(task, options.model, options, directory=Path(folder))
    # The first step compiles, and is not in the rate.
    steps = _STEPS - 1
    seconds = steps * batch_size / result.images_per_second
    return {
      "seconds": (seconds - result.saving_seconds) / steps,
      "waiting_share": result.input_wait_share,
    }

  return call


def bare_training(batch_size: int) -> calls.Call:
  """Returns the call of a plain jitted step over batches on the devices."""
  options, mesh = config.Train(), distributed.mesh()
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  split = jax.sharding.NamedSharding(mesh, jax.P("data"))
  model = networks.get(options.model, _CLASSES, nnx.Rngs(0))
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  optimizer = optax.adamw(
    options.learning_rate,
    weight_decay=options.weight_decay,
    mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
  )

  def step(state, images, labels, key):
    params, rest, moments = state

    def loss(params):
      model = nnx.merge(graph, params, rest, copy=True)
      logits = model(augment.weak(images, key))
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, rest), gradients = gradient(params)
    updates, moments = optimizer.update(gradients, moments, params)
    return (optax.apply_updates(params, updates), rest, moments), value

  step = jax.jit(step, donate_argnums=0, out_shardings=everywhere)
  data = _data()
  batches = [
    jax.device_put((data["image"][rows], data["label"][rows]), split)
    for rows in np.random.default_rng(0).integers(
      _IMAGES, size=(_BATCHES, batch_size)
    )
  ]
  keys = [jax.device_put(jax.random.key(i), everywhere) for i in range(_STEPS)]
  state = jax.device_put((params, rest, optimizer.init(params)), everywhere)

  def call():
    nonlocal state

    def run(state):
      losses = []
      for i, key in enumerate(keys):
        state, loss = step(state, *batches[i % _BATCHES], key)
        losses.append(loss)
        # Devices on one CPU may wait for one another if far more is under way.
        jax.block_until_ready(losses[max(i - 2, 0)])
      return jax.block_until_ready(state)

    seconds, state = calls.timed(lambda: run(state))
    return {"seconds": seconds / _STEPS}

  return call


def load(name: str) -> None:
  """Starts JAX."""
  del name
  jax.local_devices()


def call(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of one of `cases.Stage.ours`.

  Args:
    name: The implementation.
    case: What to run.
    options: Options of the run.
    folder: With the data.
  """
  if case.stage == "train":
    make = bare_training if name == "bare" else training
    return make(case.shape[0])
  if case.stage == "encode":
    encoder = registry.get(options.encoder, image_size=options.image_size)
    images = cases.images(case, encoder.image_size)
    encode = functools.partial(registry.encode, encoder, images)
    return lambda: {"seconds": calls.timed(encode)[0]}
  if case.stage == "stream":
    return _stream(name, case.shape[0], options.memory_budget, folder)
  if case.stage == "sample":
    bank = bank_lib.FeatureBank.open(folder / "bank")
    return sample(bank, *case.shape[2:])
  # Aligned as JAX wants it, as the blocks of a bank are: no copies.
  features = np.asarray(jnp.asarray(np.load(folder / "features.npy")))
  if name == "gemm":
    centroids = np.load(folder / "centroids.npy")
    return _gemm(features, centroids, len(features))
  return calls.kmeans(_KMeans(), name, case, features, folder)

"""The training loop, and the same steps in a loop written by hand."""

from pathlib import Path
import tempfile

from flax import nnx
import jax
import numpy as np
import optax

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax.benchmark import calls
from ecos_jax.data import loader
from ecos_jax.models import networks
from ecos_jax.training import augment
from ecos_jax.training import loop
from ecos_jax.training import tasks

_CLASSES = 10
_IMAGES = 2000
_STEPS = 100
# Batches in memory, of the loop by hand.
_BATCHES = 8


def _data(config: config_lib.Train) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(1)
  size = config.image_size
  return {
    "image": rng.integers(256, size=(_IMAGES, size, size, 3), dtype=np.uint8),
    "label": rng.integers(_CLASSES, size=_IMAGES),
  }


def ours(batch_size: int) -> calls.Call:
  """Returns the call of our loop with its input; checkpoints do not count."""
  config = config_lib.Train(
    steps=_STEPS, batch_size=batch_size, checkpoint_every=_STEPS
  )
  task = tasks.Supervised(_CLASSES, loader.Arrays(_data(config)))

  def call():
    with tempfile.TemporaryDirectory() as folder:
      result = loop.train(task, config.model, config, directory=Path(folder))
    # The first step compiles, and is not in the rate.
    steps = _STEPS - 1
    seconds = steps * batch_size / result.images_per_second
    return {
      "seconds": (seconds - result.saving_seconds) / steps,
      "waiting_share": result.input_wait_share,
    }

  return call


def bare(batch_size: int) -> calls.Call:
  """Returns the call of a plain jitted step over batches on the devices."""
  config = config_lib.Train()
  mesh = distributed.mesh()
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  split = jax.sharding.NamedSharding(mesh, jax.P("data"))
  model = networks.get(config.model, _CLASSES, nnx.Rngs(0))
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  optimizer = optax.adamw(
    config.learning_rate,
    weight_decay=config.weight_decay,
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
  data = _data(config)
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

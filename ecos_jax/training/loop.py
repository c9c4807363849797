"""The training loop: one jitted step over a mesh, resumable to the bit.

Everything that a step depends on is in the checkpoint (weights, statistics,
optimizer, step, key, position of each input stream, metrics that wait for their
row), and nothing else is: a run that is killed goes on from its last checkpoint
and ends with the same numbers.
"""

from collections.abc import Callable
import contextlib
import functools
from pathlib import Path
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax.data import loader
from ecos_jax.models import registry
from ecos_jax.training import augment
from ecos_jax.training import checkpoints
from ecos_jax.training import metrics as metrics_lib
from ecos_jax.training import tasks

_WARMUP = 0.1  # share of the steps
_AHEAD = 2  # steps handed to the devices before the loop waits for one
_ASK_SECONDS = 5.0  # between questions whether to stop
_EVALUATION_BATCH = 512
_SHOWN = ("loss", "accuracy", "agreement")  # on the bar

State = dict[str, Any]
Shardings = tuple[jax.sharding.NamedSharding, jax.sharding.NamedSharding]


class Result(NamedTuple):
  """A trained model, and how it went in this call.

  `seconds` and the figures after it are of this call alone: a run that was
  already at its last step reports 0 images a second. `saving_seconds` is the
  time spent on checkpoints after the first step. The wait for input overlaps
  with the devices' work, so its share is an upper bound of what input costs.
  """

  model: nnx.Module
  accuracy: float | None
  steps: int
  seconds: float
  images_per_second: float
  input_wait_share: float
  saving_seconds: float


def _shardings(mesh: jax.sharding.Mesh) -> Shardings:
  """Returns the shardings of what is everywhere and of a batch."""
  spec = jax.sharding.PartitionSpec
  return (
    jax.sharding.NamedSharding(mesh, spec()),
    jax.sharding.NamedSharding(mesh, spec("data")),
  )


def _optimizer(config: config_lib.Train) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=int(_WARMUP * config.steps),
    decay_steps=config.steps,
  )

  def matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

  return optax.adamw(schedule, weight_decay=config.weight_decay, mask=matrices)


def _step(
  task: tasks.Task,
  graph: Any,
  optimizer: optax.GradientTransformation,
  shardings: Shardings,
) -> Callable[[State, tasks.Batches], tuple[State, tasks.Metrics]]:
  """Returns the jitted step: state and batches to state and metrics."""
  everywhere, split = shardings
  # The arrays of a task that is a pytree are arguments: what a jitted function
  # closes over would be compiled into it.
  arrays, structure = [], None
  if not jax.tree_util.all_leaves([task]):
    arrays, structure = jax.tree.flatten(task)
    arrays = jax.device_put(arrays, everywhere)

  def step(
    arrays: list[jax.Array], state: State, batches: tasks.Batches
  ) -> tuple[State, tasks.Metrics]:
    own = task if structure is None else jax.tree.unflatten(structure, arrays)
    key = jax.random.fold_in(
      jax.random.wrap_key_data(state["key"]), state["step"]
    )

    def loss(params: Any) -> tuple[jax.Array, tuple[Any, tasks.Metrics]]:
      model = nnx.merge(graph, params, state["statistics"], copy=True)
      value, metrics = own.loss(model, batches, key)
      statistics = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
      return value, (statistics, metrics)

    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, (statistics, metrics)), gradients = gradient(state["params"])
    updates, optimizer_state = optimizer.update(
      gradients, state["optimizer"], state["params"]
    )
    new = {
      "step": state["step"] + 1,
      "key": state["key"],
      "params": optax.apply_updates(state["params"], updates),
      "statistics": statistics,
      "optimizer": optimizer_state,
    }
    return new, {"loss": value, **metrics}

  jitted = jax.jit(
    step,
    donate_argnums=1,
    in_shardings=(everywhere, everywhere, split),
    out_shardings=(everywhere, everywhere),
  )
  return functools.partial(jitted, arrays)


def logits(
  model: nnx.Module, source: loader.Source, mesh: jax.sharding.Mesh
) -> np.ndarray:
  """Returns the logits [n, num_classes] float32 of every sample, in order.

  Args:
    model: Maps [b, s, s, 3] float32 to logits; used in evaluation mode.
    source: At least one sample; its images are taken as they are.
    mesh: Each batch is split over its axis `data`.
  """
  everywhere, split = _shardings(mesh)
  model.eval()
  graph, state = nnx.split(model)

  @jax.jit
  def predict(state: Any, batch: jax.Array) -> jax.Array:
    result = nnx.merge(graph, state)(augment.normalise(batch))
    return jax.lax.with_sharding_constraint(result, everywhere)

  size = -(-_EVALUATION_BATCH // mesh.size) * mesh.size
  rows = []
  for start in tqdm.trange(
    0, len(source), size, desc="evaluation", disable=None
  ):
    indices = np.arange(start, min(start + size, len(source)))
    batch = source.batch(indices)["image"]
    padding = [(0, size - len(batch))] + [(0, 0)] * 3
    padded = jax.device_put(np.pad(batch, padding), split)
    rows.append(np.asarray(predict(state, padded))[: len(batch)])
  return np.concatenate(rows)


def accuracy(
  model: nnx.Module,
  images: np.ndarray,
  labels: np.ndarray,
  mesh: jax.sharding.Mesh,
) -> float:
  """Returns the share of images whose largest logit is their label's.

  Args:
    model: Maps [b, s, s, 3] float32 to logits; used in evaluation mode.
    images: [n, s, s, 3] uint8; n > 0.
    labels: [n] integers.
    mesh: Each batch is split over its axis `data`.
  """
  found = logits(model, loader.Arrays({"image": images}), mesh).argmax(-1)
  return float((found == labels).mean())


def _check(task: tasks.Task, config: config_lib.Train, devices: int) -> None:
  if config.batch_size < 1 or config.batch_size % devices:
    raise errors.EcosError(
      f"--config.train.batch_size={config.batch_size} does not divide over "
      f"{devices} devices: make it a multiple of {devices}"
    )
  for name, stream in task.streams.items():
    if not len(stream.source):
      raise errors.EcosError(f"there are no {name} images to train on")


def _check_labels(task: tasks.Task) -> None:
  for name, stream in task.streams.items():
    if stream.labelled and not _any_label(stream.source):
      raise errors.EcosError(
        f"none of the {name} images has a label, so there is nothing to learn "
        "from: take a dataset with labels (a run in which the client labels "
        "leaves them in labels/dataset), or make the stream with labelled=False"
      )


def _any_label(source: loader.Source) -> bool:
  """Returns whether a label is known; the first few samples mostly tell."""
  for start in range(0, len(source), _EVALUATION_BATCH):
    stop = min(start + _EVALUATION_BATCH, len(source))
    batch = source.batch(np.arange(start, stop))
    if "label" not in batch or (batch["label"] >= 0).any():
      return True
  return False


def _inputs(
  task: tasks.Task,
  batch_size: int,
  seed: int,
  split: jax.sharding.NamedSharding,
) -> dict[str, Any]:
  """Returns an iterator for each stream, over batches on the devices."""

  def place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {
      key: jax.make_array_from_process_local_data(split, array)
      for key, array in batch.items()
    }

  seeds = np.random.SeedSequence(seed).generate_state(len(task.streams))
  return {
    name: loader.batches(
      stream.source,
      stream.ratio * batch_size,
      int(own_seed),
      jax.process_index(),
      jax.process_count(),
      place,
    )
    for own_seed, (name, stream) in zip(
      seeds, sorted(task.streams.items()), strict=True
    )
  }


def _means(rows: list[tasks.Metrics], last_step: int) -> dict[str, float]:
  """Returns the means of the metrics of the steps up to `last_step`.

  Raises:
    EcosError: A loss is not a finite number.
  """
  rows = jax.device_get(rows)
  for step, row in enumerate(rows, last_step - len(rows) + 1):
    if not np.isfinite(row["loss"]):
      raise errors.EcosError(
        f"the loss is {row['loss']} at step {step}: lower "
        "--config.train.learning_rate and run again"
      )
  return {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}


def _start(
  model: nnx.Module, optimizer: optax.GradientTransformation, seed: int
) -> tuple[Any, State]:
  """Returns the graph of a network and the state of a new run."""
  graph, params, statistics = nnx.split(model, nnx.Param, ...)
  params = nnx.to_pure_dict(params)
  return graph, {
    "step": jnp.zeros((), jnp.int32),
    "key": jax.random.key_data(jax.random.key(seed)),
    "params": params,
    "statistics": nnx.to_pure_dict(statistics),
    "optimizer": optimizer.init(params),
  }


def load(
  directory: Path, model_name: str, num_classes: int, mesh: jax.sharding.Mesh
) -> nnx.Module:
  """Returns the model of a finished `train`, in evaluation mode.

  Args:
    directory: Its `checkpoints/`, which is only read.
    model_name: The model that was trained.
    num_classes: Its number of logits.
    mesh: The devices to load it to.

  Raises:
    EcosError: There is no checkpoint of that model, the last cannot be read, or
      its training was not finished.
  """
  optimizer = _optimizer(config_lib.Train())
  graph, state = jax.eval_shape(
    lambda: _start(
      registry.get(model_name, num_classes, nnx.Rngs(0)), optimizer, seed=0
    )
  )
  everywhere, _ = _shardings(mesh)
  state = jax.tree.map(lambda leaf: leaf.update(sharding=everywhere), state)
  restored = None
  if directory.is_dir():
    with checkpoints.Checkpoints(directory, read_only=True) as saved:
      restored = saved.restore(state)
  if restored is None:
    raise errors.EcosError(f"{directory} holds no checkpoint")
  steps = restored.record.get("steps")
  if restored.step != steps:
    raise errors.EcosError(
      f"the last checkpoint in {directory} is of step {restored.step} of "
      f"{steps}: the training was not finished, or its end is lost"
    )
  state = restored.state
  model = nnx.merge(graph, state["params"], state["statistics"])
  model.eval()
  return model


def train(
  task: tasks.Task,
  model_name: str,
  config: config_lib.Train,
  *,
  directory: str | Path,
  seed: int = 1,
  mesh: jax.sharding.Mesh | None = None,
  test: tuple[np.ndarray, np.ndarray] | None = None,
) -> Result:
  """Returns the trained model; goes on from the last checkpoint, if any.

  Args:
    task: Images and loss.
    model_name: One of `models.registry.names()`.
    config: Steps, batch size, optimizer, how often to log and to save.
    directory: Gets `checkpoints/`, whose last one is the final model,
      `metrics.jsonl` and TensorBoard's files. Must be of the same task and
      settings when it is not empty.
    seed: Of the initial weights, the order of the images and their views.
    mesh: With one axis `data`, over which batches are split; all devices
      without.
    test: Images [n, s, s, 3] uint8 and labels [n] for the accuracy.

  Raises:
    EcosError: The batch does not divide over the devices, a stream is empty or
      lacks labels, the loss is not finite, or the checkpoints cannot be read.
    PreemptedError: The process was told to stop; a checkpoint is saved.
  """
  started = time.monotonic()
  directory, mesh = Path(directory), mesh or distributed.mesh()
  _check(task, config, mesh.size)
  shardings = _shardings(mesh)

  # The state of a new run: also the shapes of a checkpoint.
  optimizer = _optimizer(config)
  model = registry.start(
    model_name, task.num_classes, nnx.Rngs(seed), config.weights
  )
  graph, state = _start(model, optimizer, seed)
  state = jax.device_put(state, shardings[0])
  inputs = _inputs(task, config.batch_size, seed, shardings[1])
  step_fn = _step(task, graph, optimizer, shardings)

  with contextlib.ExitStack() as stack:
    stack.enter_context(distributed.saving())
    saved = stack.enter_context(
      checkpoints.Checkpoints(directory / "checkpoints")
    )
    for iterator in inputs.values():
      stack.callback(iterator.close)
    first, pending = 0, []
    if restored := saved.restore(state):
      first, state = restored.step, restored.state
      for name, position in restored.record["inputs"].items():
        inputs[name].set_state(position)
      for row in restored.record["pending"]:
        pending.append({name: np.float32(value) for name, value in row.items()})
    else:
      _check_labels(task)
    writer = None
    if jax.process_index() == 0:
      writer = stack.enter_context(metrics_lib.Writer(directory, first))
    bar = stack.enter_context(
      tqdm.tqdm(
        total=config.steps, initial=first, desc="training", disable=None
      )
    )

    waited = saving = 0.0
    compiled = asked = time.monotonic()
    last_asked, ask = first, first + 1
    for step in range(first + 1, config.steps + 1):
      begin = time.monotonic()
      batches = {name: next(iterator) for name, iterator in inputs.items()}
      waited += time.monotonic() - begin
      state, metrics = step_fn(state, batches)
      pending.append(metrics)
      if step == first + 1:
        jax.block_until_ready(metrics)
        compiled, waited = time.monotonic(), 0.0
      elif len(pending) > _AHEAD:
        jax.block_until_ready(pending[-1 - _AHEAD])
      bar.update()

      last = step == config.steps
      save = last or step % config.checkpoint_every == 0
      stop = False
      if step == ask:
        # All ask process 0 at the same step, which says at which one again.
        now = time.monotonic()
        taken = step - last_asked
        # No more than twice as many: what runs ahead looks fast at first.
        steps = min(int(_ASK_SECONDS / (now - asked) * taken), 2 * taken)
        stop, steps = distributed.first(
          lambda steps=steps: (distributed.told_to_stop(), max(steps, 1))
        )
        asked, last_asked, ask = now, step, step + steps
      if save or step % config.log_every == 0:
        means = _means(pending, step)
        pending = []
        bar.set_postfix(
          {k: f"{v:.3f}" for k, v in means.items() if k in _SHOWN}
        )
        if writer:
          writer.write(step, means)
      if save or stop:
        positions = {name: it.get_state() for name, it in inputs.items()}
        record = {
          "inputs": positions,
          "steps": config.steps,
          "pending": jax.tree.map(float, jax.device_get(pending)),
        }
        begin = time.monotonic()
        saved.save(step, state, record)
        saving += time.monotonic() - begin
      if stop and not last:
        raise errors.PreemptedError
    # The first step compiles and is left out.
    seconds = time.monotonic() - compiled
    images = sum(stream.ratio for stream in task.streams.values())
    images *= config.batch_size * max(config.steps - first - 1, 0)

  model = nnx.merge(graph, state["params"], state["statistics"])
  model.eval()
  return Result(
    model=model,
    accuracy=accuracy(model, *test, mesh) if test else None,
    steps=config.steps,
    seconds=time.monotonic() - started,
    images_per_second=images / seconds,
    input_wait_share=waited / seconds,
    saving_seconds=saving,
  )

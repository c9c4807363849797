"""The training loop; a run that is resumed ends with the same bits.

A checkpoint holds everything that a step depends on: weights, statistics,
optimizer, step, key, and the position of each input stream. It also holds the
metrics of steps that are not written yet. So a run that is killed goes on from
its last checkpoint and ends with the same numbers.
"""

import contextlib
from pathlib import Path
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import numpy as np
import tqdm

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax.data import loader
from ecos_jax.models import networks
from ecos_jax.training import checkpoints
from ecos_jax.training import evaluation
from ecos_jax.training import metrics as metrics_lib
from ecos_jax.training import step as step_lib
from ecos_jax.training import tasks

_AHEAD = 2  # steps handed to the devices before the loop waits for one
_ASK_SECONDS = 5.0  # between questions whether to stop
_LABEL_ROWS = 512  # read together when looking for a label
_SHOWN = ("loss", "accuracy", "agreement")  # on the bar


class Result(NamedTuple):
  """A trained model, and how the call went.

  Attributes:
    model: In evaluation mode.
    accuracy: On the test images; None without any.
    steps: Steps that led to the model, in all calls.
    seconds: Duration of this call.
    images_per_second: Rate after the first step of this call, which compiles; 0
      if there was only one step.
    input_wait_share: Share of the time that the loop waited for images. Devices
      work meanwhile, so it is an upper bound of what input costs.
    saving_seconds: Spent on checkpoints after the first step of this call.
  """

  model: nnx.Module
  accuracy: float | None
  steps: int
  seconds: float
  images_per_second: float
  input_wait_share: float
  saving_seconds: float


class _Timing(NamedTuple):
  """Seconds after the first step: in all, waiting for input, and saving."""

  total: float
  waiting: float
  saving: float


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
  optimizer = step_lib.adamw(config_lib.Train())
  graph, state = jax.eval_shape(
    lambda: step_lib.start(
      networks.get(model_name, num_classes, nnx.Rngs(0)), optimizer, seed=0
    )
  )
  everywhere, _ = step_lib.shardings(mesh)
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
  return step_lib.network(graph, restored.state)


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
    model_name: One of `models.networks.names()`.
    config: Steps, batch size, optimizer, how often to log and to save.
    directory: Gets `checkpoints/`, whose last one is the final model,
      `metrics.jsonl` and TensorBoard's files. If it is not empty, it must be of
      the same task and settings.
    seed: Decides the initial weights, the order of the images and their views.
    mesh: Batches are split over its only axis, `data`; None for all devices.
    test: Images [n, s, s, 3] uint8 and labels [n] for the accuracy.

  Raises:
    EcosError: The batch does not divide over the devices, a stream is empty or
      lacks labels, the loss is not finite, or the checkpoints cannot be read.
    PreemptedError: The process was told to stop; a checkpoint is saved.
  """
  started = time.monotonic()
  directory, mesh = Path(directory), mesh or distributed.mesh()
  _check(task, config, mesh.size)
  everywhere, split = step_lib.shardings(mesh)

  # The state of a new run; a checkpoint has the same shapes.
  model = networks.start(
    model_name, task.num_classes, nnx.Rngs(seed), config.weights
  )
  optimizer = step_lib.adamw(config)
  graph, state = step_lib.start(model, optimizer, seed)
  state = jax.device_put(state, everywhere)
  step_fn = step_lib.jitted(task, graph, optimizer, mesh)
  inputs = _inputs(task, config.batch_size, seed, split)

  with contextlib.ExitStack() as stack:
    stack.enter_context(distributed.saving())
    saved = stack.enter_context(
      checkpoints.Checkpoints(directory / "checkpoints")
    )
    for iterator in inputs.values():
      stack.callback(iterator.close)
    restored = saved.restore(state)
    if restored is None:
      _check_labels(task)
      restored = checkpoints.Restored(0, state, {"inputs": {}, "pending": []})
    state, timing = _steps(step_fn, restored, inputs, config, saved, directory)

  images = sum(stream.ratio for stream in task.streams.values())
  images *= config.batch_size * max(config.steps - restored.step - 1, 0)
  model = step_lib.network(graph, state)
  return Result(
    model=model,
    accuracy=evaluation.accuracy(model, *test, mesh) if test else None,
    steps=config.steps,
    seconds=time.monotonic() - started,
    images_per_second=images / timing.total,
    input_wait_share=timing.waiting / timing.total,
    saving_seconds=timing.saving,
  )


def _steps(
  step_fn: Any,
  restored: checkpoints.Restored,
  inputs: dict[str, Any],
  config: config_lib.Train,
  saved: checkpoints.Checkpoints,
  directory: Path,
) -> tuple[step_lib.State, _Timing]:
  """Takes the steps after `restored`, with `step_fn` from `step.jitted`."""
  first, state, record = restored
  for name, position in record["inputs"].items():
    inputs[name].set_state(position)
  pending: list[Any] = [
    {name: np.float32(value) for name, value in row.items()}
    for row in record["pending"]
  ]
  told_to_stop = _StopQuestion(first)
  waiting = saving = 0.0
  begin = time.monotonic()
  with contextlib.ExitStack() as stack:
    writer = None
    if jax.process_index() == 0:
      writer = stack.enter_context(metrics_lib.Writer(directory, first))
    bar = tqdm.tqdm(
      total=config.steps, initial=first, desc="training", disable=None
    )
    stack.enter_context(bar)
    for step in range(first + 1, config.steps + 1):
      before = time.monotonic()
      batches = {name: next(iterator) for name, iterator in inputs.items()}
      waiting += time.monotonic() - before
      state, metrics = step_fn(state, batches)
      pending.append(metrics)
      if step == first + 1:
        # This step compiles: the timing begins after it.
        jax.block_until_ready(metrics)
        begin, waiting = time.monotonic(), 0.0
      elif len(pending) > _AHEAD:
        jax.block_until_ready(pending[-1 - _AHEAD])
      bar.update()

      stop = told_to_stop(step)
      save = step == config.steps or step % config.checkpoint_every == 0
      if save or step % config.log_every == 0:
        means = _means(pending, step)
        pending = []
        bar.set_postfix(
          {k: f"{v:.3f}" for k, v in means.items() if k in _SHOWN}
        )
        if writer:
          writer.write(step, means)
      if save or stop:
        before = time.monotonic()
        record = {
          "inputs": {name: it.get_state() for name, it in inputs.items()},
          "steps": config.steps,
          "pending": jax.tree.map(float, jax.device_get(pending)),
        }
        saved.save(step, state, record)
        saving += time.monotonic() - before
      if stop and step < config.steps:
        raise errors.PreemptedError
  return state, _Timing(time.monotonic() - begin, waiting, saving)


class _StopQuestion:
  """Asks process 0 every few seconds whether all processes are to stop.

  All ask at the same step, and the answer says at which one to ask again.
  """

  def __init__(self, step: int):
    self._asked, self._at, self._next = time.monotonic(), step, step + 1

  def __call__(self, step: int) -> bool:
    if step < self._next:
      return False
    now, taken = time.monotonic(), step - self._at
    # At most twice as many as before: the loop runs ahead of the devices, so
    # the first steps look fast.
    steps = min(int(_ASK_SECONDS / (now - self._asked) * taken), 2 * taken)
    stop, steps = distributed.first(
      lambda: (distributed.told_to_stop(), max(steps, 1))
    )
    self._asked, self._at, self._next = now, step, step + steps
    return stop


def _check(task: tasks.Task, config: config_lib.Train, devices: int) -> None:
  if config.batch_size < 1 or config.batch_size % devices:
    raise errors.EcosError(
      f"`train.batch_size`={config.batch_size} does not divide over "
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


def _any_label(source: loader.Samples) -> bool:
  """Returns whether a label is known; the first few samples mostly tell."""
  for start in range(0, len(source), _LABEL_ROWS):
    stop = min(start + _LABEL_ROWS, len(source))
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
        "`train.learning_rate` and run again"
      )
  return {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}

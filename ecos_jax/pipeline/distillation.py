"""Adaptive model compression: a teacher, and what it says about the proxy.

The teacher learns from the labels of the pool, or comes from a checkpoint. The
student learns from the teacher's logits on the proxy: neither the labels of the
proxy nor those of the client are read.
"""

import dataclasses
from pathlib import Path
import shutil
from typing import Any

from flax import nnx
import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.data import loader
from ecos_jax.models import registry
from ecos_jax.models import size
from ecos_jax.pipeline import selection
from ecos_jax.pipeline import summary
from ecos_jax.pipeline.job import Job
from ecos_jax.training import loop
from ecos_jax.training import tasks

_CHECKPOINTS = "checkpoints"
_LOGITS = "logits.npy"


class _Distilled:
  """The images of a source without its labels, and logits if there are any."""

  def __init__(self, source: loader.Source, logits: np.ndarray | None = None):
    self._source = source
    self._logits = logits

  def __len__(self) -> int:
    return len(self._source)

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {"image": self._source.batch(indices)["image"]}
    if self._logits is not None:
      arrays["logits"] = self._logits[indices]
    return arrays


def teacher(job: Job) -> None:
  """Trains the teacher on the labelled pool, or takes it from a checkpoint."""
  options = job.config.distill
  if options.teacher not in registry.names():
    raise errors.ConfigError(
      f"--config.distill.teacher={options.teacher} is not known: take one of "
      f"{', '.join(registry.names())}"
    )

  def work(path: Path) -> dict[str, Any]:
    brought = options.teacher_checkpoint
    if brought is None:
      model, how = _trained(job, path), f"{options.teacher_steps:,} steps of"
    else:
      model, how = _copied(job, Path(brought), path), "checkpoint of"
    accuracy = None
    if job.test is not None:
      accuracy = loop.accuracy(model, *job.test, distributed.mesh())
    return {
      "digest": _digest(model),
      "accuracy": accuracy,
      "parameters": size.parameters(model),
      "multiply_adds": size.multiply_adds(model, job.config.train.image_size),
      "count": None,
      "text": f"{how} {options.teacher}, accuracy {summary.percent(accuracy)}",
    }

  weights = None
  if options.teacher_checkpoint is None:
    weights = registry.digest(options.teacher, None)
  job.stage(
    "teacher",
    "distill.teacher train.image_size train.batch_size train.learning_rate "
    "train.weight_decay client.remote seed",
    "pool",
    work,
    # A copy of a checkpoint is made anew.
    resumable=options.teacher_checkpoint is None,
    together=True,
    brought={"weights": weights} if weights else {},
  )


def _trained(job: Job, path: Path) -> nnx.Module:
  options = job.config.distill
  pool = job.problem.pool
  indices = np.flatnonzero(pool.labels(np.arange(len(pool))) >= 0)
  if not len(indices):
    raise errors.EcosError(
      "the pool has no labels to train a teacher on: give one as "
      "--config.distill.teacher_checkpoint"
    )
  if options.teacher_images:
    order = jax.random.permutation(job.key("teacher"), indices)
    indices = np.asarray(order)[: options.teacher_images]
  result = loop.train(
    tasks.Supervised(
      job.classes,
      loader.PoolPart(pool, indices, job.config.train.image_size),
    ),
    options.teacher,
    dataclasses.replace(
      job.config.train, steps=options.teacher_steps, weights=None
    ),
    seed=job.config.seed,
    directory=path,
    mesh=distributed.mesh(),
  )
  return result.model


def _copied(job: Job, source: Path, path: Path) -> nnx.Module:
  source = source.expanduser()
  try:
    model = _load(job, source)
  except errors.EcosError as error:
    raise errors.EcosError(
      f"--config.distill.teacher_checkpoint must be the folder checkpoints/ of "
      f"a trained {job.config.distill.teacher}: {error}"
    ) from error
  if jax.process_index() == 0:
    shutil.copytree(source, path / _CHECKPOINTS)
  return model


def _load(job: Job, checkpoints: Path) -> nnx.Module:
  return loop.load(
    checkpoints,
    job.config.distill.teacher,
    job.classes,
    distributed.mesh(),
  )


def _digest(model: nnx.Module) -> str:
  weights = jax.tree.leaves(nnx.state(model))
  return files.digest(*(np.asarray(weight).tobytes() for weight in weights))


def _finished_teacher(job: Job) -> nnx.Module:
  """Returns the teacher that the finished stage vouches for.

  Raises:
    EcosError: Its checkpoints are gone, damaged, or of another teacher.
  """
  stage = job.stages["teacher"]
  checkpoints = stage.path / _CHECKPOINTS
  with workdir.redo_named(stage.path):
    model = _load(job, checkpoints)
    if _digest(model) != stage.result["digest"]:
      raise errors.EcosError(f"{checkpoints} holds another teacher")
  return model


def logits(job: Job) -> None:
  """Computes the teacher's logits of the images to train on, as they are."""

  def work(path: Path) -> dict[str, Any]:
    source = _Distilled(selection.selected(job))
    model = _finished_teacher(job)
    rows = loop.logits(model, source, distributed.mesh())
    if jax.process_index() == 0:
      np.save(path / _LOGITS, rows)
    sure = float(np.mean(jax.nn.softmax(rows).max(-1)))
    return {
      "digest": files.digest(rows.tobytes()),
      "count": len(rows),
      "text": f"{len(rows):,} images, mean confidence {sure:.3f}",
    }

  local = job.config.sampling.method is config_lib.Method.LOCAL
  inputs = "teacher pool" if local else "teacher proxy"
  job.stage("logits", "", inputs, work, together=True)


def _finished_logits(job: Job) -> np.ndarray:
  stage = job.stages["logits"]
  path = stage.path / _LOGITS
  rows = workdir.load_array(path)
  if files.digest(rows.tobytes()) != stage.result["digest"]:
    raise workdir.damaged(path)
  return rows


def task(job: Job, source: loader.Source) -> tasks.Distill:
  """Returns the student's task.

  Args:
    job: Its teacher is finished, and its logits if they are cached.
    source: The images to train on, in the order of the logits.
  """
  options = job.config.distill
  cached = options.logits is config_lib.Logits.CACHED
  return tasks.Distill(
    job.classes,
    _Distilled(source, _finished_logits(job) if cached else None),
    None if cached else _finished_teacher(job),
    options.temperature,
    options.hard_share,
    options.augment,
  )

"""From the proxy to the model: training and evaluation."""

import dataclasses
from pathlib import Path

from absl import logging
from flax import nnx
import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import files
from ecos_jax.config import limits
from ecos_jax.models import delivery
from ecos_jax.models import size
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import distillation
from ecos_jax.pipeline import labelling
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline import selection
from ecos_jax.pipeline import stages
from ecos_jax.pipeline.stages import FIELDS
from ecos_jax.pipeline.stages import Job
from ecos_jax.pipeline.stages import Stage
from ecos_jax.training import export
from ecos_jax.training import loop
from ecos_jax.training import tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelResult(distillation.NetworkResult):
  """The trained model.

  Attributes:
    input_wait_share: Share of the time that training waited for images.
    images_per_second: Speed of training; 0 if all steps were done before.
  """

  input_wait_share: float
  images_per_second: float


def wanted(job: Job) -> bool:
  """Returns whether there is something to train on: images, and targets."""
  config, proxy = job.config, job.get(selection.PROXY)
  if not config.train.steps:
    return False
  if proxy is None or config.train.task is not config_lib.Task.MANUAL:
    return True
  return not config.of_features and proxy.labelled > 0


def _model(job: Job, path: Path) -> ModelResult:
  """Trains on the proxy, and evaluates on the client's test images."""
  train = job.config.train
  result = loop.train(
    _task(job),
    train.model,
    train,
    seed=job.config.seed,
    directory=path,
    mesh=distributed.mesh(),
    test=job.test,
  )
  if jax.process_index() == 0:
    export.write(path / export.FILE, result.model, train.image_size)
    _deliver(path / delivery.FILE, result.model, job)
  return ModelResult(
    digest="",
    text=f"{result.steps:,} steps of {train.model}, accuracy "
    f"{stages.percent(result.accuracy)}",
    accuracy=result.accuracy,
    parameters=size.parameters(result.model),
    multiply_adds=size.multiply_adds(result.model, train.image_size),
    input_wait_share=result.input_wait_share,
    images_per_second=result.images_per_second,
  )


def _deliver(path: Path, model: nnx.Module, job: Job) -> None:
  """Writes the model for the client, which runs no program of others."""
  train = job.config.train
  if not delivery.fits(model) or train.image_size > limits.MAX_IMAGE_SIZE:
    logging.warning(
      "no %s: the model is too large for client.evaluate", delivery.FILE
    )
    return
  message = delivery.pack(model, train.model, job.classes, train.image_size)
  files.write(path, message.to_bytes())


MODEL = Stage(
  "model",
  ModelResult,
  _model,
  fields=(
    FIELDS.train.task,
    FIELDS.train.model,
    FIELDS.train.image_size,
    FIELDS.train.steps,
    FIELDS.train.batch_size,
    FIELDS.train.learning_rate,
    FIELDS.train.weight_decay,
    FIELDS.train.unlabelled_ratio,
    FIELDS.train.unlabelled,
    FIELDS.train.confidence,
    FIELDS.seed,
  ),
  inputs=(
    pooling.POOL,
    selection.PROXY,
    distillation.TEACHER,
    labelling.LABELS,
  ),
  brought=lambda job: distillation.weights_digest(
    job.config.train.model, job.config.train.weights
  ),
  resumable=True,
  together=True,
)


def stage(config: config_lib.Config) -> Stage:
  """Returns the stage `MODEL` with the fields that the task depends on."""
  fields = MODEL.fields
  if distillation.wanted(config):
    fields += (FIELDS.distill,)
  if asking.labelled_by_votes(config):
    fields += (FIELDS.labelling.soft,)
  return dataclasses.replace(MODEL, fields=fields)


def _task(job: Job) -> tasks.Task:
  train = job.config.train
  if labelling.wanted(job.config):
    return labelling.task(job)
  if train.task is config_lib.Task.DISTILL:
    return distillation.task(job)
  indices = np.zeros(0, np.int64)
  if job.config.sampling.method is not config_lib.Method.LOCAL:
    indices = job.read(selection.PROXY)
  return selection.semi_supervised(job, selection.images(job), indices)

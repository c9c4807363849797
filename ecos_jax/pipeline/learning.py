"""From the proxy to the model: labels, training, evaluation."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax.data import loader
from ecos_jax.models import registry as models
from ecos_jax.models import size
from ecos_jax.pipeline import distillation
from ecos_jax.pipeline import labelling
from ecos_jax.pipeline import selection
from ecos_jax.pipeline import summary
from ecos_jax.pipeline.job import Job
from ecos_jax.training import export
from ecos_jax.training import loop
from ecos_jax.training import tasks

Method = config_lib.Method


def wanted(job: Job) -> bool:
  """Returns whether there is something to train on: images, and targets."""
  if not job.config.train.steps:
    return False
  proxy = job.stages.get("proxy")
  if proxy is None or job.config.train.task is not config_lib.Task.MANUAL:
    return True
  return not job.config.of_features and proxy.result["labelled"] > 0


def model(job: Job) -> None:
  """Trains on the proxy, and evaluates on the client's test images."""

  def work(path: Path) -> dict[str, Any]:
    result = loop.train(
      _task(job),
      job.config.train.model,
      job.config.train,
      seed=job.config.seed,
      directory=path,
      mesh=distributed.mesh(),
      test=job.test,
    )
    if jax.process_index() == 0:
      export.write(
        path / export.FILE, result.model, job.config.train.image_size
      )
    return {
      "digest": "",
      "accuracy": result.accuracy,
      "parameters": size.parameters(result.model),
      "multiply_adds": size.multiply_adds(
        result.model, job.config.train.image_size
      ),
      "input_wait_share": result.input_wait_share,
      "images_per_second": result.images_per_second,
      "count": None,
      "text": f"{result.steps:,} steps of {job.config.train.model}, "
      f"accuracy {summary.percent(result.accuracy)}",
    }

  inputs = "pool"
  if job.config.sampling.method is not Method.LOCAL:
    inputs += " proxy"
  fields = (
    "train.task train.model train.image_size train.steps train.batch_size "
    "train.learning_rate train.weight_decay train.unlabelled_ratio "
    "train.confidence seed"
  )
  if job.config.train.task is config_lib.Task.DISTILL:
    inputs += " teacher"
    fields += " distill."
  if labelling.wanted(job):
    inputs += " labels"
    fields += " labelling.abstained_as_unlabelled"
  weights = models.digest(job.config.train.model, job.config.train.weights)
  job.stage(
    "model",
    fields,
    inputs,
    work,
    resumable=True,
    together=True,
    brought={"weights": weights} if weights else {},
  )


def _task(job: Job) -> tasks.Task:
  train = job.config.train
  if labelling.wanted(job):
    return labelling.task(job)
  selected = selection.selected(job)
  if train.task is config_lib.Task.DISTILL:
    return distillation.task(job, selected)
  if not train.unlabelled_ratio:
    return tasks.Supervised(job.classes, selected)
  pool = job.problem.pool
  rest = np.arange(len(pool))
  if job.config.sampling.method is not Method.LOCAL:
    rest = np.setdiff1d(rest, selection.chosen(job))
  return tasks.FixMatch(
    job.classes,
    selected,
    loader.PoolPart(pool, rest, train.image_size),
    train.unlabelled_ratio,
    train.confidence,
  )

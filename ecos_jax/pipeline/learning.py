"""From the proxy to the model: labels, training, evaluation."""

from pathlib import Path
from typing import Any

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax.data import digits
from ecos_jax.data import loader
from ecos_jax.data import proxy as proxy_lib
from ecos_jax.pipeline import selection
from ecos_jax.pipeline import summary
from ecos_jax.pipeline.job import Job
from ecos_jax.training import loop
from ecos_jax.training import tasks

Method = config_lib.Method

_CLASSES = 10


def model(job: Job) -> None:
  """Trains on the proxy, and evaluates on the client's test images."""

  def work(path: Path) -> dict[str, Any]:
    test = None
    if not job.config.client.remote:
      images = job.benchmark.test
      every = np.arange(len(images))
      test = images.images(every, digits.SIZE), images.labels(every)
    result = loop.train(
      _task(job),
      job.config.train.model,
      job.config.train,
      seed=job.config.seed,
      directory=path,
      mesh=distributed.mesh(),
      test=test,
    )
    return {
      "digest": "",
      "accuracy": result.accuracy,
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
    "train.task train.model train.steps train.batch_size "
    "train.learning_rate train.weight_decay train.unlabelled_ratio "
    "train.confidence seed"
  )
  job.stage("model", fields, inputs, work, resumable=True)


def _task(job: Job) -> tasks.Task:
  train = job.config.train
  if job.config.sampling.method is Method.LOCAL:
    client = job.benchmark.client
    every = np.arange(len(client))
    labelled: loader.Source = loader.Arrays(
      {
        "image": client.images(every, digits.SIZE),
        "label": client.labels(every),
      }
    )
    chosen = np.zeros(0, np.int64)
  else:
    proxy = job.stages["proxy"].path
    labelled = loader.proxy_source(
      proxy_lib.open_proxy(proxy / selection.DATASET), digits.SIZE
    )
    chosen = np.load(proxy / selection.INDICES)
  if not train.unlabelled_ratio:
    return tasks.Supervised(_CLASSES, labelled)
  pool = job.benchmark.pool
  rest = np.setdiff1d(np.arange(len(pool)), chosen)
  return tasks.FixMatch(
    _CLASSES,
    labelled,
    loader.PoolPart(pool, rest, digits.SIZE),
    train.unlabelled_ratio,
    train.confidence,
  )

"""From the answer to the proxy: which samples of the pool are chosen."""

from pathlib import Path
from typing import Any

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.client import respond
from ecos_jax.cloud import baselines
from ecos_jax.cloud import choose
from ecos_jax.data import loader
from ecos_jax.data import proxy as proxy_lib
from ecos_jax.pipeline import asking
from ecos_jax.pipeline.job import Job

Method = config_lib.Method

NEEDS_BANK = (*config_lib.ASKING, Method.KCENTER, Method.MAK)
DATASET = "dataset"
INDEX = "index.npy"
_INDICES = "indices.npy"


def proxy(job: Job) -> None:
  """Chooses the samples and writes them as a TFDS dataset.

  Of a pool of features only the index is written.
  """

  def work(path: Path) -> dict[str, Any]:
    indices, clusters, weights = _choose(job)
    pool = job.problem.pool
    np.save(path / _INDICES, indices)
    labels = pool.labels(indices)
    if job.config.train.task is config_lib.Task.CLIENT:
      labels = np.full(len(indices), -1, np.int64)
    if pool.feature_sources:
      proxy_lib.write_index(path / INDEX, pool, indices, clusters, weights)
    else:
      proxy_lib.write(path / DATASET, pool, indices, clusters, labels)
    client = job.problem.client_source
    share = None
    if client is not None:
      share = float(np.mean(pool.source_of(indices) == client))
    budget = job.config.sampling.budget
    short = "" if len(indices) >= budget else f" of the {budget:,} asked for"
    return {
      "digest": _digest(indices),
      "size": len(indices),
      "client_share": share,
      "labelled": int((labels >= 0).sum()),
      "count": len(indices),
      "text": f"{len(indices):,} samples{short} by "
      f"{job.config.sampling.method.value}",
    }

  inputs = "pool"
  if job.config.sampling.method in NEEDS_BANK:
    inputs += " bank"
  if job.config.sampling.method in config_lib.ASKING:
    inputs += " codebook response"
  job.stage("proxy", "sampling. train.task seed", inputs, work)


def _choose(job: Job) -> choose.Choice:
  """Returns the proxy, sorted by cluster, then by index."""
  options = job.config.sampling
  key = job.key("proxy")
  size = job.stages["pool"].result["size"]
  match options.method:
    case Method.ECOS | Method.ECOS_PAPER:
      response = asking.finished_response(job)
      return choose.samples(
        job.checked_bank(alone=True),
        asking.finished_codebook(job),
        response.scores,
        response.statement.sigma,
        options,
        key,
      ).by_cluster()
    case Method.KCENTER:
      bank = job.checked_bank(alone=True)
      indices = baselines.kcenter(bank, options.budget, key)
    case Method.MAK:
      features = respond.features(
        job.client,
        np.arange(len(job.client)),
        job.encoder,
        job.config.encoder.batch_size,
      )
      bank = job.checked_bank(alone=True)
      indices = baselines.mak(bank, features, options.budget, key)
    case Method.RANDOM:
      indices = baselines.random(size, options.budget, key)
    case Method.IDEAL:
      indices = _of_the_client(job)
      take = min(options.budget, len(indices))
      indices = indices[baselines.random(len(indices), take, key)]
    case _:
      indices = np.arange(size)
  none = np.full(len(indices), -1, np.int32)
  return choose.Choice(indices, none, np.ones(len(indices), np.float32))


def _of_the_client(job: Job) -> np.ndarray:
  """Returns the pool indices of the client's domain: known in simulation only.

  Raises:
    EcosError: None are.
  """
  pool, source = job.problem.pool, job.problem.client_source
  if source is None:
    raise errors.EcosError(
      "--config.sampling.method=ideal: no source of the pool is known to be of "
      "the client's domain"
    )
  return np.flatnonzero(pool.source_of(np.arange(len(pool))) == source)


def chosen(job: Job) -> np.ndarray:
  """Returns the pool indices of the proxy, int64 [B].

  Raises:
    EcosError: They are damaged.
  """
  stage = job.stages["proxy"]
  return read_indices(stage.path, stage.result["digest"])


def read_indices(path: Path, digest: str) -> np.ndarray:
  """Returns the pool indices that a stage `proxy` wrote, int64 [B].

  Args:
    path: Its folder.
    digest: Of the indices, as its manifest has it.

  Raises:
    WorkdirError: They are damaged.
  """
  indices = workdir.load_array(path / _INDICES)
  if _digest(indices) != digest:
    raise workdir.damaged(path / _INDICES)
  return indices


def _digest(indices: np.ndarray) -> str:
  return files.digest(np.sort(indices).astype("<i8", copy=False).data)


def selected(job: Job) -> loader.Source:
  """Returns the samples to train on: the proxy, or the client's own."""
  size = job.config.train.image_size
  if job.config.sampling.method is Method.LOCAL:
    client = job.client
    every = np.arange(len(client))
    return loader.Arrays(
      {
        "image": client.images(every, size),
        "label": client.labels(every),
      }
    )
  return dataset(job, "proxy")


def dataset(job: Job, stage: str) -> loader.Source:
  """Returns the samples of the dataset that a finished stage left.

  Raises:
    EcosError: It is damaged.
  """
  path = job.stages[stage].path
  with workdir.redo_named(path):
    return loader.proxy_source(path / DATASET, job.config.train.image_size)

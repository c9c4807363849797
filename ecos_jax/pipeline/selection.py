"""From the answer to the proxy: which samples of the pool are chosen."""

import dataclasses
from pathlib import Path

from absl import logging
import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.cloud import baselines
from ecos_jax.cloud import choose
from ecos_jax.cloud import labels as labels_lib
from ecos_jax.clustering import start as start_lib
from ecos_jax.data import lists as lists_lib
from ecos_jax.data import loader
from ecos_jax.data import proxy as proxy_lib
from ecos_jax.encoders import encode
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import grouping
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline.stages import FIELDS
from ecos_jax.pipeline.stages import Job
from ecos_jax.pipeline.stages import Result
from ecos_jax.pipeline.stages import Stage
from ecos_jax.training import tasks

Method = config_lib.Method

NEEDS_BANK = (*config_lib.ASKING, Method.KCENTER, Method.MAK)
DATASET = "dataset"
INDEX = "index.npy"
LIST = "index.csv"
_INDICES = "indices.npy"
_COVERED = "covered.npy"
_NONE = np.zeros(0, np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyResult(Result):
  """What the proxy holds; its digest is that of the sorted pool indices.

  Attributes:
    size: Number of samples, B.
    client_share: Share of them from the client's domain, if known.
    labelled: Samples whose label is known, and may be used.
    signal: Share of the answer that chance does not explain.
    nearer: By how much the proxy is at least nearer to the client's data than a
      random one.
    nearer_at_most: By how much at most. All three are as in `cloud.worth`, and
      null if nothing was asked.
  """

  size: int
  client_share: float | None
  labelled: int
  signal: float | None
  nearer: float | None
  nearer_at_most: float | None


def _proxy(job: Job, path: Path) -> ProxyResult:
  """Chooses the samples and writes them as a TFDS dataset.

  Of a pool of features only the index is written.
  """
  choice, ranks = _choose(job)
  indices, clusters, weights, worth, covered = choice
  pool, options = job.problem.pool, job.config.sampling
  np.save(path / _INDICES, job.keep(PROXY, indices))
  if covered is not None:
    np.save(path / _COVERED, covered)
  labels = np.full(len(indices), -1, np.int64)
  if job.config.train.task is not config_lib.Task.CLIENT:
    labels = pool.labels(indices)
  if pool.feature_sources:
    proxy_lib.write_index(path / INDEX, pool, indices, clusters, weights)
  else:
    proxy_lib.write(path / DATASET, pool, indices, clusters, labels)
  asked = options.method in config_lib.ASKING
  proxy_lib.write_csv(
    path / LIST,
    *(pool, indices, clusters, weights),
    ranks=ranks,
    scores=grouping.answer(job).scores if asked else None,
  )
  client, share = job.problem.client_source, None
  if client is not None:
    share = float(np.mean(pool.source_of(indices) == client))
  size = len(indices)
  short = (
    f" of the {options.budget:,} asked for" if size < options.budget else ""
  )
  if worth is not None and worth.may_be_noise:
    logging.warning(
      "the client's answer may be nothing but noise, so this proxy may be no "
      "better than a random one: ask with a lower --config.privacy.sigma, with "
      "fewer numbers (--config.codebook.size, --config.codebook.directions), "
      "or a client with more samples"
    )
  elif worth is not None and worth.tells_of_no_gain:
    logging.warning(
      "the client's answer is more than noise, and this proxy is hardly nearer "
      "to it than a random one: lower --config.sampling.budget, or add images "
      "like the client's to the pool"
    )
  return ProxyResult(
    digest=_digest(indices),
    text=f"{size:,} samples{short} by {options.method.value}",
    count=size,
    size=size,
    client_share=share,
    labelled=int((labels >= 0).sum()),
    # Numbers of processes differ by rounding.
    signal=None if worth is None else round(worth.signal, 4),
    nearer=None if worth is None else round(worth.nearer, 4),
    nearer_at_most=None if worth is None else round(worth.nearer_at_most, 4),
  )


def read_indices(path: Path, digest: str) -> np.ndarray:
  """Returns the pool indices that a stage `proxy` wrote, int64 [B].

  Args:
    path: Its folder.
    digest: That of the indices in its manifest.

  Raises:
    WorkdirError: They are damaged.
  """
  indices = workdir.load_array(path / _INDICES)
  if _digest(indices) != digest:
    raise workdir.damaged(path / _INDICES)
  return indices


def _digest(indices: np.ndarray) -> str:
  return files.digest(np.sort(indices).astype("<i8", copy=False).data)


PROXY = Stage(
  "proxy",
  ProxyResult,
  _proxy,
  fields=(FIELDS.sampling, FIELDS.train.task, FIELDS.seed),
  inputs=(
    pooling.POOL,
    pooling.BANK,
    asking.LAST.codebook,
    asking.LAST.response,
    grouping.GROUPS,
  ),
  brought=lambda job: {
    field: lists_lib.read(path).digest
    for field, path in _list_files(job.config).items()
  },
  read=read_indices,
)


def lists(job: Job) -> dict[str, np.ndarray]:
  """Returns the samples that `data.exclude` and `sampling.include` name.

  Raises:
    EcosError: A list cannot be read, names samples that the pool lacks, or
      leaves nothing to choose.
  """
  config, size = job.config, job[pooling.POOL].size
  found = {}
  for field, path in _list_files(config).items():
    with errors.about(field, path):
      rows, missing = lists_lib.find(lists_lib.read(path), job.problem.pool)
      if missing and (field == "sampling.include" or not len(rows)):
        raise errors.EcosError(
          f"{missing:,} entries name no sample of the pool"
        )
      if missing:
        logging.warning(
          "%s: %d entries name no sample of the pool", path, missing
        )
    found[field] = rows
  excluded = found.get("data.exclude", _NONE)
  included = found.get("sampling.include", _NONE)
  if len(included) >= config.sampling.budget:
    raise errors.EcosError(
      f"`sampling.include` names {len(included):,} samples, as many as "
      f"`sampling.budget`={config.sampling.budget} or more: raise the budget"
    )
  excluded = np.setdiff1d(excluded, included)
  if len(excluded) + len(included) >= size:
    raise errors.EcosError("`data.exclude` leaves nothing to choose")
  return {"excluded": excluded, "included": included}


def _list_files(config: config_lib.Config) -> dict[str, str]:
  given = {
    "data.exclude": config.data.exclude,
    "sampling.include": config.sampling.include,
  }
  return {field: path for field, path in given.items() if path is not None}


def check(config: config_lib.Config) -> None:
  """Checks that the lists of samples can be read.

  Raises:
    EcosError: One cannot.
  """
  for field, path in _list_files(config).items():
    with errors.about(field, path):
      lists_lib.read(path)


def discriminant(job: Job) -> labels_lib.Discriminant:
  """Returns what the votes of each class tell of the pool's classes."""
  answer, book = grouping.answer(job), job.read(asking.LAST.codebook)
  assert answer.sums is not None and book.directions is not None
  return labels_lib.fit(
    job.read(pooling.BANK),
    book.directions,
    answer.sums,
    answer.scale,
    job.key("labels"),
  )


def _choose(job: Job) -> tuple[choose.Choice, np.ndarray | None]:
  """Returns the proxy, sorted by cluster, then by index; and its ranks.

  Samples of the first ranks are a proxy of a smaller budget; None: there is no
  such order.
  """
  options = job.config.sampling
  key = job.key("proxy")
  size = job[pooling.POOL].size
  listed, ranks = lists(job), None
  match options.method:
    case Method.ECOS | Method.ECOS_PAPER:
      classes = options.classes is not config_lib.Classes.IGNORE
      choice = choose.samples(
        pooling.checked_bank(job, alone=True),
        job.read(asking.LAST.codebook),
        grouping.answer(job),
        options,
        key,
        discriminant(job) if classes else None,
        **listed,
      )
      order = np.lexsort((choice.indices, choice.clusters))
      return choice.by_cluster(), order
    case Method.KCENTER:
      bank = pooling.checked_bank(job, alone=True)
      indices = baselines.kcenter(bank, options.budget, key)
    case Method.MAK:
      private = job.client.data
      features = encode.of_rows(
        private,
        np.arange(len(private)),
        job.encoder,
        job.config.encoder.batch_size,
      )
      bank = pooling.checked_bank(job, alone=True)
      features = features.astype(np.float32, copy=False)
      indices = baselines.mak(bank, features, options.budget, key)
    case Method.RANDOM:
      included = listed["included"]
      rest = np.setdiff1d(np.arange(size), np.concatenate([*listed.values()]))
      take = options.budget - len(included)
      new = rest[baselines.random(len(rest), take, key)]
      indices = np.concatenate([included, new])
      # Any of a random order are a random sample.
      ranks = _random_ranks(len(included), len(new), key)
    case Method.IDEAL:
      indices = _of_the_client(job)
      take = min(options.budget, len(indices))
      indices = indices[baselines.random(len(indices), take, key)]
      ranks = _random_ranks(0, take, key)
    case _:
      indices = np.arange(size)
  none = np.full(len(indices), -1, np.int32)
  weights = np.ones(len(indices), np.float32)
  return choose.Choice(indices, none, weights), ranks


def _random_ranks(first: int, rest: int, key: jax.Array) -> np.ndarray:
  """Returns ranks 0..first - 1 in order, then `rest` more in random order."""
  random = start_lib.generator(jax.random.fold_in(key, 1))
  return np.concatenate([np.arange(first), first + random.permutation(rest)])


def _of_the_client(job: Job) -> np.ndarray:
  """Returns the pool indices of the client's domain: known in simulation only.

  Raises:
    EcosError: None are.
  """
  pool, source = job.problem.pool, job.problem.client_source
  if source is None:
    raise errors.EcosError(
      "`sampling.method`=ideal: no source of the pool is known to be of "
      "the client's domain"
    )
  return np.flatnonzero(pool.source_of(np.arange(len(pool))) == source)


def clusters(job: Job, indices: np.ndarray) -> np.ndarray:
  """Returns the cluster of each of the pool indices, int32 [n].

  -1 where the method of sampling has no clusters.
  """
  if job.config.sampling.method in config_lib.ASKING:
    return job.read(asking.LAST.codebook).assignment[indices]
  return np.full(len(indices), -1, np.int32)


def images(job: Job) -> loader.Samples:
  """Returns the samples to train on: the proxy, or the client's own."""
  if job.config.sampling.method is not Method.LOCAL:
    return dataset(job, PROXY)
  private = job.client.data
  every = np.arange(len(private))
  return loader.Arrays(
    {
      "image": private.images(every, job.config.train.image_size),
      "label": private.labels(every),
    }
  )


def dataset(job: Job, stage: Stage) -> loader.Samples:
  """Returns the samples of the dataset that a finished stage left.

  Raises:
    EcosError: It is damaged.
  """
  path = job.path(stage)
  with workdir.redo_named(path):
    return loader.proxy_source(path / DATASET, job.config.train.image_size)


def semi_supervised(
  job: Job, labelled: loader.Samples, indices: np.ndarray
) -> tasks.Task:
  """Returns the task of labelled samples, with unlabelled ones if wanted.

  Args:
    job: The run.
    labelled: Samples with labels.
    indices: int64 [n], their pool indices; empty if they are not of the pool.
  """
  train, pool = job.config.train, job.problem.pool
  if not train.unlabelled_ratio:
    return tasks.Supervised(job.classes, labelled)
  match train.unlabelled:
    case config_lib.Unlabelled.ALL:
      rest = np.arange(len(pool))
    case config_lib.Unlabelled.ABSTAINED:
      rest = job.read(PROXY)
    case config_lib.Unlabelled.COVERED:
      covered = workdir.load_array(job.path(PROXY) / _COVERED)
      assignment = job.read(asking.LAST.codebook).assignment
      # Rows in no cluster have the label -1.
      rest = np.flatnonzero(np.append(covered, False)[assignment])
  rest = np.setdiff1d(rest, indices)
  if not len(rest):
    logging.warning("no sample is left without a label: no FixMatch")
    return tasks.Supervised(job.classes, labelled)
  return tasks.FixMatch(
    job.classes,
    labelled,
    loader.Unlabelled(loader.PoolPart(pool, rest, train.image_size)),
    train.unlabelled_ratio,
    train.confidence,
  )

"""Labels by the client: for a request about the proxy, or by its votes.

The labels that the pool may have are never trained on: a simulation only counts
with them how many of the client's labels are right.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax import workdir
from ecos_jax.client import private_knn
from ecos_jax.cloud import labels as labels_lib
from ecos_jax.config import limits
from ecos_jax.data import loader
from ecos_jax.data import proxy as proxy_lib
from ecos_jax.messages import wire
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import client
from ecos_jax.pipeline import grouping
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline import selection
from ecos_jax.pipeline.stages import FIELDS
from ecos_jax.pipeline.stages import Job
from ecos_jax.pipeline.stages import Stage
from ecos_jax.privacy import accounting
from ecos_jax.training import tasks

_LABELS = "labels.npy"
_POSTERIOR = "posterior.npy"
_ORDER = "order.npy"
_EXCHANGE = client.Exchange(
  "request",
  "label_request.safetensors",
  "label_response.safetensors",
  labels=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsResult(asking.MessageResult):
  """What the client answered.

  Attributes:
    terms: The terms that the client used.
    requests: Samples to label.
    considered: Samples considered before the budget was used up.
    answered: Labels given.
    accuracy: Share of right labels; in a simulation with a labelled pool.
  """

  terms: dict[str, Any]
  requests: int
  considered: int
  answered: int
  accuracy: float | None


def wanted(config: config_lib.Config) -> bool:
  """Returns whether the client labels the proxy."""
  return (
    config.train.task is config_lib.Task.CLIENT
    and config.sampling.method is not config_lib.Method.LOCAL
    and config.train.steps > 0
  )


def terms(job: Job) -> messages.LabelTerms:
  """Returns the terms that a request proposes; the simulated client takes them.

  Raises:
    ProtocolError: One is out of range.
  """
  options = job.config.labelling
  return messages.LabelTerms(
    classes=job.classes,
    neighbours=options.neighbours,
    sigma_screen=options.sigma_screen,
    sigma_vote=options.sigma_vote,
    threshold=options.threshold,
    gamma=options.gamma,
    delta=job.config.privacy.delta,
    relation=job.config.privacy.relation.value,
    unit=job.config.privacy.unit.value,
  )


def check_sizes(job: Job) -> None:
  """Checks that a request can hold the proxy, before the client is asked.

  Raises:
    ConfigError: It cannot.
  """
  config = job.config
  if not wanted(config) or asking.labelled_by_votes(config):
    return
  budget, d = config.sampling.budget, job.encoder.dimension
  most = wire.MAX_BYTES - wire.MAX_HEADER_BYTES
  size = np.dtype(config.bank.dtype.value).itemsize * d
  most = min(most // size, limits.MAX_LABEL_COUNTS // job.classes)
  if budget > most:
    raise errors.ConfigError(
      f"`sampling.budget`={budget} is more than a request for labels may hold, "
      f"with d = {d} and {job.classes} classes: {most}"
    )


def _request(job: Job, path: Path) -> asking.MessageResult:
  """Writes the features of the proxy, in random order, for the client."""
  indices = job.read(selection.PROXY)
  # A client whose budget ends leaves a random part unlabelled, not clusters.
  order = np.asarray(jax.random.permutation(job.key("request"), len(indices)))
  features = job.read(pooling.BANK).take(indices[order])
  request = job.keep(
    REQUEST, labels_lib.request(features, job.encoder, terms(job))
  )
  np.save(path / _ORDER, order)
  return asking.sent(path / _EXCHANGE.message, request)


REQUEST = Stage(
  _EXCHANGE.asked,
  asking.MessageResult,
  _request,
  fields=(
    FIELDS.labelling.neighbours,
    FIELDS.labelling.gamma,
    FIELDS.labelling.sigma_screen,
    FIELDS.labelling.sigma_vote,
    FIELDS.labelling.threshold,
    FIELDS.privacy.delta,
    FIELDS.privacy.unit,
    FIELDS.seed,
  ),
  inputs=(pooling.BANK, selection.PROXY),
  read=client.reader(messages.LabelRequest, _EXCHANGE.message),
)


def _labels(job: Job, path: Path) -> LabelsResult:
  """Takes the client's labels."""
  request = job.read(REQUEST)
  data = job.client.labels(request, _EXCHANGE)
  response = job.keep(LABELS, labels_lib.read(data, request))
  files.write(path / _EXCHANGE.answer, data)
  labels = np.empty(len(response.labels), np.int64)
  labels[workdir.load_array(job.path(REQUEST) / _ORDER)] = response.labels
  np.save(path / _LABELS, labels)
  epsilon = accounting.alone(response)
  if not (labels >= 0).any():
    raise errors.EcosError(
      f"the client answered none of {len(labels)} requests; it has spent the "
      f"epsilon of {epsilon:.4g} all the same, and its ledger says "
      "so. In another `workdir` lower `labelling.threshold`, or raise "
      "`sampling.budget`"
    )
  accuracy = _write_dataset(job, path, labels)
  answered = int((labels >= 0).sum())
  outcome = private_knn.outcome(len(labels), response.considered, answered)
  privacy = f"epsilon {epsilon:.4g}"
  if not response.private:
    privacy = "NOT PRIVATE"
  return LabelsResult(
    digest=files.digest(data),
    text=f"{outcome}; {privacy}",
    bytes=len(data),
    terms=dataclasses.asdict(response.terms),
    requests=len(labels),
    considered=response.considered,
    answered=answered,
    accuracy=accuracy,
  )


LABELS = Stage(
  "labels",
  LabelsResult,
  _labels,
  fields=(
    FIELDS.labelling.max_epsilon,
    FIELDS.privacy.insecure_noise_seed,
    FIELDS.client.remote,
  ),
  inputs=(REQUEST, selection.PROXY),
  read=client.reader(messages.LabelResponse, _EXCHANGE.answer),
  answer=_EXCHANGE,
)


def _voted(job: Job, path: Path) -> LabelsResult:
  """Labels the proxy by the votes of each class."""
  features = job.read(pooling.BANK).take(job.read(selection.PROXY))
  posterior = selection.discriminant(job).posterior(features)
  labels = posterior.argmax(axis=1)
  labels[posterior.max(axis=1) < job.config.labelling.certain] = -1
  answered = int((labels >= 0).sum())
  if not answered:
    raise errors.EcosError(
      f"no label has the probability `labelling.certain`="
      f"{job.config.labelling.certain:g}: lower it"
    )
  np.save(path / _LABELS, labels)
  np.save(path / _POSTERIOR, posterior.astype(np.float32))
  return LabelsResult(
    digest=files.digest(labels.data, posterior.astype(np.float32).data),
    text=f"{answered:,} of {len(labels):,} labelled by the votes of each class",
    bytes=0,
    terms={},
    requests=len(labels),
    considered=len(labels),
    answered=answered,
    accuracy=_write_dataset(job, path, labels),
  )


# In place of `REQUEST` and `LABELS`, whose name it has for the stages after.
VOTED = Stage(
  "labels",
  LabelsResult,
  _voted,
  fields=(FIELDS.labelling.by, FIELDS.labelling.certain, FIELDS.seed),
  inputs=(
    pooling.BANK,
    asking.LAST.codebook,
    asking.LAST.response,
    grouping.GROUPS,
    selection.PROXY,
  ),
)


def _write_dataset(job: Job, path: Path, labels: np.ndarray) -> float | None:
  """Writes the labelled samples as a TFDS dataset.

  Returns:
    The share of right labels, where the pool has labels and no real client.
  """
  given = labels >= 0
  pool, indices = job.problem.pool, job.read(selection.PROXY)[given]
  clusters = selection.clusters(job, indices)
  proxy_lib.write(
    path / selection.DATASET, pool, indices, clusters, labels[given]
  )
  truth = pool.labels(indices)
  if job.config.client.remote or (truth < 0).all():
    return None
  return float(np.mean((truth == labels[given])[truth >= 0]))


def task(job: Job) -> tasks.Task:
  """Returns what is trained: the answers, with or without unlabelled images."""
  labelled = selection.dataset(job, LABELS)
  indices = job.read(selection.PROXY)
  given = workdir.load_array(job.path(LABELS) / _LABELS) >= 0
  if asking.labelled_by_votes(job.config) and job.config.labelling.soft:
    posterior = workdir.load_array(job.path(LABELS) / _POSTERIOR)
    labelled = loader.Beside(labelled, probabilities=posterior[given])
  return selection.semi_supervised(job, labelled, indices[given])

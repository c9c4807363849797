"""Labels by the client: request, answer, and what is trained on them.

Between cloud and client pass the bytes of a label request and of a label
response and nothing else. No label that the pool may have is read for the
training: only a simulation counts with them how many answers are right.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax import workdir
from ecos_jax.client import label as label_lib
from ecos_jax.client import private_knn
from ecos_jax.cloud import labels as labels_lib
from ecos_jax.data import loader
from ecos_jax.data import proxy as proxy_lib
from ecos_jax.messages import wire
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import selection
from ecos_jax.pipeline.job import Job
from ecos_jax.training import tasks

LABELS = "labels.npy"
_ORDER = "order.npy"
_REQUEST = "label_request.safetensors"
_RESPONSE = "label_response.safetensors"
_INSTRUCTIONS = f"""
Waiting for the client's labels. Carry this file to it:
  {{request}}
There, with its labelled images in DIR and the ledger of its first answer:
  python -m ecos_jax.client.label --request={_REQUEST} --data=DIR \\
    --epsilon={{epsilon:g}} --ledger=LEDGER --out={_RESPONSE}
Bring the answer back as
  {{brought}}
and run this command again."""


class _Unlabelled:
  """The images of a source, whatever labels it may have."""

  def __init__(self, source: loader.Source):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": self._source.batch(indices)["image"]}


def wanted(job: Job) -> bool:
  """Returns whether the client labels the proxy."""
  return (
    job.config.train.task is config_lib.Task.CLIENT
    and job.config.sampling.method is not config_lib.Method.LOCAL
    and job.config.train.steps > 0
  )


def terms(job: Job) -> messages.LabelTerms:
  """Returns the terms that the request proposes and the simulation takes.

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
  )


def request(job: Job) -> None:
  """Writes the features of the proxy, in random order, for the client."""

  def work(path: Path) -> dict[str, Any]:
    indices = selection.chosen(job)
    # A client whose budget ends leaves a random part unlabelled, not clusters.
    order = np.asarray(jax.random.permutation(job.key("request"), len(indices)))
    message = labels_lib.request(
      job.feature_bank.take(indices[order]), job.encoder, terms(job)
    )
    data = message.to_bytes()
    np.save(path / _ORDER, order)
    files.write(path / _REQUEST, data)
    return {
      "digest": message.digest,
      "bytes": len(data),
      "count": None,
      "text": f"{len(data):,} bytes down",
    }

  fields = (
    "labelling.neighbours labelling.gamma labelling.sigma labelling.threshold "
    "privacy.delta seed"
  )
  job.stage("request", fields, "bank proxy", work)


def labels(job: Job) -> bool:
  """Takes the client's labels, simulated or brought to the workdir.

  Returns:
    Whether they are there.
  """
  brought = job.work.path / _RESPONSE
  remote = job.config.client.remote
  asked = job.stages["request"].path
  if remote and not distributed.first(
    lambda: brought.exists() or job.work.done("labels")
  ):
    text = _INSTRUCTIONS.format(
      request=asked / _REQUEST,
      epsilon=job.config.labelling.max_epsilon,
      brought=brought,
    )
    print(text)
    return False

  def work(path: Path) -> dict[str, Any]:
    request = asking.message(
      job, "request", _REQUEST, messages.LabelRequest.from_bytes
    )
    data = (
      wire.read_file(brought) if remote else _simulated(job, request.to_bytes())
    )
    response = labels_lib.read(data, request)
    files.write(path / _RESPONSE, data)
    labels = np.empty(len(response.labels), np.int64)
    labels[workdir.load_array(asked / _ORDER)] = response.labels
    np.save(path / LABELS, labels)
    accuracy = _write_dataset(job, path, labels, response.epsilon)
    answered = int((labels >= 0).sum())
    privacy = f"epsilon {response.epsilon:.4g}"
    if not response.private:
      privacy = "NOT PRIVATE"
    return {
      "digest": files.digest(data),
      "bytes": len(data),
      "terms": dataclasses.asdict(response.terms),
      "requests": len(labels),
      "answers": response.answers,
      "considered": response.considered,
      "epsilon": response.epsilon,
      "private": response.private,
      "answered": answered,
      "accuracy": accuracy,
      "count": None,
      "text": label_lib.outcome(len(labels), response.considered, answered)
      + f"; {privacy}",
    }

  fields = "labelling.max_epsilon privacy.insecure_noise_seed client.remote"
  job.stage("labels", fields, "request proxy", work)
  return True


def finished_labels(job: Job) -> messages.LabelResponse:
  """Returns the client's labels.

  Raises:
    EcosError: They are damaged.
  """
  return asking.message(
    job, "labels", _RESPONSE, messages.LabelResponse.from_bytes
  )


def _simulated(job: Job, request_data: bytes) -> bytes:
  """Returns the labels of the simulated client."""
  budget = job.config.labelling.max_epsilon
  try:
    return label_lib.answer(
      request_data,
      lambda: job.client,
      terms(job),
      job.ledger,
      asking.simulated_tag(job),
      consent=lambda text: None,
      epsilon=budget,
      encoder=job.encoder,
      batch_size=job.config.encoder.batch_size,
      insecure_noise_seed=job.config.privacy.insecure_noise_seed,
    )
  except private_knn.RefusedError as error:
    raise errors.EcosError(
      f"the client gives no label for --config.labelling.max_epsilon={budget}: "
      "raise it and run again, or take another --workdir with more noise "
      "(--config.labelling.sigma_screen, .sigma_vote) or a smaller "
      "--config.sampling.budget; the proxy is there all the same"
    ) from error


def _write_dataset(
  job: Job, path: Path, labels: np.ndarray, epsilon: float
) -> float | None:
  """Writes the answered samples as a TFDS dataset.

  Returns:
    The share of right answers, where the pool has labels and no real client.

  Raises:
    EcosError: There is no answer.
  """
  answered = np.flatnonzero(labels >= 0)
  if not len(answered):
    raise errors.EcosError(
      f"the client answered none of {len(labels)} requests; it has spent the "
      f"epsilon of {epsilon:.4g} all the same, and its ledger says so. In "
      "another --workdir lower --config.labelling.threshold, or raise "
      "--config.sampling.budget"
    )
  indices = selection.chosen(job)[answered]
  clusters = selection.dataset(job, "proxy").batch(answered)["cluster"]
  pool = job.problem.pool
  proxy_lib.write(
    path / selection.DATASET, pool, indices, clusters, labels[answered]
  )
  truth = pool.labels(indices)
  if job.config.client.remote or (truth < 0).all():
    return None
  return float(np.mean((truth == labels[answered])[truth >= 0]))


def task(job: Job) -> tasks.Task:
  """Returns what is trained: the answers, with or without unlabelled images."""
  train, stage = job.config.train, job.stages["labels"]
  labelled = selection.dataset(job, "labels")
  indices = selection.chosen(job)
  given = workdir.load_array(stage.path / LABELS) >= 0
  pool = job.problem.pool
  rest = np.setdiff1d(np.arange(len(pool)), indices[given])
  if job.config.labelling.abstained_as_unlabelled:
    rest = indices[~given]
  if not train.unlabelled_ratio or not len(rest):
    return tasks.Supervised(job.classes, labelled)
  return tasks.FixMatch(
    job.classes,
    labelled,
    _Unlabelled(loader.PoolPart(pool, rest, train.image_size)),
    train.unlabelled_ratio,
    train.confidence,
  )

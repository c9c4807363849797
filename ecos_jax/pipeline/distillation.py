"""Adaptive model compression: a teacher, and its logits of the proxy.

The teacher learns from the labels of the pool, or comes from a checkpoint. The
student learns from the teacher's logits on the proxy: neither the labels of the
proxy nor those of the client are read.
"""

import dataclasses
from pathlib import Path
import shutil

from flax import nnx
import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.data import loader
from ecos_jax.models import networks
from ecos_jax.models import size
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline import selection
from ecos_jax.pipeline import stages
from ecos_jax.pipeline.stages import FIELDS
from ecos_jax.pipeline.stages import Job
from ecos_jax.pipeline.stages import Result
from ecos_jax.pipeline.stages import Stage
from ecos_jax.training import evaluation
from ecos_jax.training import loop
from ecos_jax.training import tasks

_CHECKPOINTS = "checkpoints"
_LOGITS = "logits.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkResult(Result):
  """A trained network.

  Attributes:
    accuracy: Share of the test images that it classifies right, if there are
      any.
    parameters: Number of weights.
    multiply_adds: Multiply-adds of one image.
  """

  accuracy: float | None
  parameters: int
  multiply_adds: int


def wanted(config: config_lib.Config) -> bool:
  """Returns whether a teacher says what the proxy's images are."""
  return config.train.task is config_lib.Task.DISTILL and config.train.steps > 0


def check(config: config_lib.Config) -> None:
  """Checks that the teacher is a known model.

  Raises:
    ConfigError: It is not.
  """
  if wanted(config) and config.distill.teacher not in networks.names():
    raise errors.ConfigError(
      f"`distill.teacher`={config.distill.teacher} is not known: take "
      f"one of {', '.join(networks.names())}"
    )


def _teacher(job: Job, path: Path) -> NetworkResult:
  """Trains the teacher on the labelled pool, or takes it from a checkpoint."""
  options = job.config.distill
  if options.teacher_checkpoint is None:
    model, how = _trained(job, path), f"{options.teacher_steps:,} steps of"
  else:
    brought = Path(options.teacher_checkpoint).expanduser()
    model, how = _copied(job, brought, path), "checkpoint of"
  accuracy = None
  if job.test is not None:
    accuracy = evaluation.accuracy(model, *job.test, distributed.mesh())
  return NetworkResult(
    digest=_digest(model),
    text=f"{how} {options.teacher}, accuracy {stages.percent(accuracy)}",
    accuracy=accuracy,
    parameters=size.parameters(model),
    multiply_adds=size.multiply_adds(model, job.config.train.image_size),
  )


def weights_digest(model: str, weights: str | None) -> dict[str, str]:
  """Returns the digest of the published weights that a training starts from."""
  digest = networks.digest(model, weights)
  return {"weights": digest} if digest else {}


TEACHER = Stage(
  "teacher",
  NetworkResult,
  _teacher,
  fields=(
    FIELDS.distill.teacher,
    FIELDS.distill.teacher_checkpoint,
    FIELDS.distill.teacher_steps,
    FIELDS.train.image_size,
    FIELDS.train.batch_size,
    FIELDS.train.learning_rate,
    FIELDS.train.weight_decay,
    FIELDS.client.remote,
    FIELDS.seed,
  ),
  inputs=(pooling.POOL,),
  brought=lambda job: (
    {}
    if job.config.distill.teacher_checkpoint
    else weights_digest(job.config.distill.teacher, None)
  ),
  resumable=True,
  together=True,
)


def _trained(job: Job, path: Path) -> nnx.Module:
  options, train = job.config.distill, job.config.train
  pool = job.problem.pool
  indices = np.flatnonzero(pool.labels(np.arange(len(pool))) >= 0)
  if not len(indices):
    raise errors.EcosError(
      "the pool has no labels to train a teacher on: give one as "
      "`distill.teacher_checkpoint`"
    )
  result = loop.train(
    tasks.Supervised(
      job.classes, loader.PoolPart(pool, indices, train.image_size)
    ),
    options.teacher,
    dataclasses.replace(train, steps=options.teacher_steps, weights=None),
    seed=job.config.seed,
    directory=path,
    mesh=distributed.mesh(),
  )
  return result.model


def _copied(job: Job, source: Path, path: Path) -> nnx.Module:
  try:
    model = _load(job, source)
  except errors.EcosError as error:
    raise errors.EcosError(
      f"`distill.teacher_checkpoint` must be the folder checkpoints/ of "
      f"a trained {job.config.distill.teacher}: {error}"
    ) from error
  if jax.process_index() == 0:
    # An interrupted call may have left a part.
    shutil.rmtree(path / _CHECKPOINTS, ignore_errors=True)
    shutil.copytree(source, path / _CHECKPOINTS)
  return model


def _load(job: Job, checkpoints: Path) -> nnx.Module:
  teacher = job.config.distill.teacher
  return loop.load(checkpoints, teacher, job.classes, distributed.mesh())


def _digest(model: nnx.Module) -> str:
  weights = jax.tree.leaves(nnx.state(model))
  return files.digest(*(np.asarray(weight).tobytes() for weight in weights))


def finished_teacher(job: Job) -> nnx.Module:
  """Returns the teacher that the finished stage vouches for.

  Raises:
    EcosError: Its checkpoints are gone, damaged, or of another teacher.
  """
  checkpoints = job.path(TEACHER) / _CHECKPOINTS
  with workdir.redo_named(job.path(TEACHER)):
    model = _load(job, checkpoints)
    if _digest(model) != job[TEACHER].digest:
      raise errors.EcosError(f"{checkpoints} holds another teacher")
  return model


def _logits(job: Job, path: Path) -> Result:
  """Computes the teacher's logits of the images to train on, as they are."""
  source = loader.Unlabelled(selection.images(job))
  rows = evaluation.logits(finished_teacher(job), source, distributed.mesh())
  if jax.process_index() == 0:
    np.save(path / _LOGITS, rows)
  sure = float(np.mean(jax.nn.softmax(rows).max(-1)))
  text = f"{len(rows):,} images, mean confidence {sure:.3f}"
  digest = files.digest(job.keep(LOGITS, rows).tobytes())
  return Result(digest=digest, text=text, count=len(rows))


def _read_logits(path: Path, digest: str) -> np.ndarray:
  rows = workdir.load_array(path / _LOGITS)
  if files.digest(rows.tobytes()) != digest:
    raise workdir.damaged(path / _LOGITS)
  return rows


LOGITS = Stage(
  "logits",
  Result,
  _logits,
  inputs=(TEACHER, selection.PROXY),
  read=_read_logits,
  together=True,
)


def task(job: Job) -> tasks.Distill:
  """Returns the student's task, on the teacher's logits."""
  logits = job.read(LOGITS)
  return tasks.Distill(
    job.classes,
    loader.Unlabelled(selection.images(job), logits=logits),
    job.config.distill.temperature,
  )

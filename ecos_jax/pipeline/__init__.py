"""The whole job: from a pool to a model trained on its proxy.

    pool -> bank -> codebook -> query -> response -> (groups) -> proxy -> labels
    -> model

`order` is this line; each stage is declared in the module that does its work.
"""

from collections.abc import Callable, Iterator
import dataclasses
from pathlib import Path
from typing import Any

import jax

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax import workdir as workdir_lib
from ecos_jax.config import checks
from ecos_jax.data import problem as problem_lib
from ecos_jax.models import networks
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import client
from ecos_jax.pipeline import distillation
from ecos_jax.pipeline import grouping
from ecos_jax.pipeline import grown
from ecos_jax.pipeline import labelling
from ecos_jax.pipeline import learning
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline import selection
from ecos_jax.pipeline import stages
from ecos_jax.pipeline import summary as summary_lib
from ecos_jax.pipeline import telling


def order(job: stages.Job) -> Iterator[stages.Stage]:
  """Yields the stages of a run; each must be run before the next is asked for.

  Raises:
    ConfigError: The budget or the codebook is larger than the pool.
  """
  config, method = job.config, job.config.sampling.method
  yield pooling.POOL
  if job[pooling.POOL].named != pooling.named(config.data):
    # The data lie elsewhere now: reading them raises if they differ.
    job.problem  # noqa: B018
  checks.check_pool(config, job[pooling.POOL].size)
  if method is not config_lib.Method.LOCAL:
    # A wrong list is an error before anything is paid for.
    selection.lists(job)
  if method in selection.NEEDS_BANK or labelling.wanted(config):
    yield pooling.BANK
  if method in config_lib.ASKING:
    for asked in asking.rounds(config):
      yield from asked
  if config.sampling.groups > 1:
    yield grouping.GROUPS
  if method is not config_lib.Method.LOCAL:
    yield selection.PROXY
  if labelling.wanted(config):
    if asking.labelled_by_votes(config):
      yield labelling.VOTED
    else:
      yield labelling.REQUEST
      yield labelling.LABELS
  if distillation.wanted(config):
    yield distillation.TEACHER
    yield distillation.LOGITS
  if learning.wanted(job):
    yield learning.stage(config)


def run(
  config: config_lib.Config,
  workdir: Path,
  *,
  enter: Callable[[Path], workdir_lib.Workdir] = workdir_lib.Workdir,
  load: Callable[..., problem_lib.Problem] = problem_lib.load,
) -> dict[str, Any] | None:
  """Runs the stages that are missing and returns the summary.

  All processes must call this alike.

  Args:
    config: What to run.
    workdir: Where every artefact goes, or is already.
    enter: Opens the workdir.
    load: Reads the data, as `data.problem.load`; a study keeps them in memory.

  Returns:
    The content of `summary.json`, a `summary.Summary`; None if the run waits
    for a remote client.

  Raises:
    EcosError: The configuration cannot run, or the workdir was made with
      another one.
    PreemptedError: The process was told to stop.
  """
  checks.validate(config)
  _check_same_everywhere(config)
  # What the configuration names must exist, before any work is done.
  stages.encoder(config)
  networks.check(config.train.model, config.train.weights)
  distillation.check(config)
  selection.check(config)
  grown.check(config)
  with enter(workdir) as work:
    job = stages.Job(config, work, load)
    _check_terms(job)
    asking.check_sizes(job)
    labelling.check_sizes(job)
    resolved = work.path / "config.json"
    if jax.process_index() == 0 and not resolved.exists():
      files.write(resolved, job.config.to_json().encode())
    try:
      for stage in order(job):
        job.run(stage)
    except client.WaitingError as waiting:
      print(waiting)
      return None
    summary = summary_lib.collect(job)
    fields = dataclasses.asdict(summary)
    if jax.process_index() == 0:
      files.write_json(work.path / "summary.json", fields)
      files.write(resolved, job.config.to_json().encode())
    if all(stage.skipped for stage in job.stages.values()):
      print("\nNothing to do: every stage was done before.")
    print("\n" + telling.text(summary, work.path))
    return fields


def _check_same_everywhere(config: config_lib.Config) -> None:
  fields = config_lib.flatten(config)
  theirs = distributed.first(lambda: fields)
  different = [
    f"`{name}`={value} here, {theirs[name]} on process 0"
    for name, value in fields.items()
    if value != theirs[name]
  ]
  if different:
    raise errors.ConfigError(
      f"all processes need the same configuration: {'; '.join(different)}"
    )


def _check_terms(job: stages.Job) -> None:
  """Checks that a client could take the terms, before any work is done."""
  group = "privacy"
  try:
    for asked in asking.rounds(job.config):
      asking.terms(job.config, first=asked is asking.FIRST)
    if labelling.wanted(job.config) and not asking.labelled_by_votes(
      job.config
    ):
      group = "labelling"
      labelling.terms(job)
  except messages.ProtocolError as error:
    field, _, rest = str(error).partition(" ")
    raise errors.ConfigError(f"`{group}.{field}` {rest}") from error

"""The stages in order: pool, bank, codebook, query, response, proxy, model.

Those of asking come twice where the client is asked twice.
"""

from collections.abc import Callable
import json
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
from ecos_jax.models import registry as models
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import distillation
from ecos_jax.pipeline import job as job_lib
from ecos_jax.pipeline import labelling
from ecos_jax.pipeline import learning
from ecos_jax.pipeline import selection
from ecos_jax.pipeline import summary as summary_lib


def run(
  config: config_lib.Config,
  workdir: Path,
  *,
  verify: bool = False,
  enter: Callable[[Path], workdir_lib.Workdir] = workdir_lib.Workdir,
  load: Callable[..., problem_lib.Problem] = problem_lib.load,
) -> dict[str, Any] | None:
  """Runs the stages that are missing and returns the summary.

  All processes must call this alike.

  Args:
    config: What to run.
    workdir: Where every artefact goes, or is already.
    verify: Whether to read all of a bank that was made before, and to compare
      its checksums.
    enter: Opens the workdir.
    load: Reads the data, as `data.problem.load`; a study keeps them in memory.

  Returns:
    The content of `summary.json`; None if the run waits for a remote client.

  Raises:
    EcosError: The configuration cannot run, or the workdir was made with
      another one.
    PreemptedError: The process was told to stop.
  """
  checks.validate(config)
  # Through JSON, as it comes from process 0.
  fields = json.loads(json.dumps(config_lib.flatten(config)))
  theirs = distributed.first(lambda: fields)
  different = [
    f"--config.{name}={value} here, {theirs[name]} on process 0"
    for name, value in fields.items()
    if value != theirs[name]
  ]
  if different:
    raise errors.ConfigError(
      f"all processes need the same configuration: {'; '.join(different)}"
    )
  # What the configuration names is there, before any work is done.
  job_lib.encoder(config)
  models.check(config.train.model, config.train.weights)
  with enter(workdir) as work:
    job = job_lib.Job(config, work, verify, load)
    terms: dict[str, Callable[[job_lib.Job], object]]
    terms = {
      "privacy": lambda job: [
        asking.terms(job, name) for name in asking.rounds(config)
      ]
    }
    if labelling.wanted(job):
      terms["labelling"] = labelling.terms
    for group, checked in terms.items():
      try:
        checked(job)
      except messages.ProtocolError as error:
        raise errors.ConfigError(f"--config.{group}.{error}") from error
    resolved = work.path / "config.json"
    if jax.process_index() == 0 and not resolved.exists():
      files.write(resolved, config.to_json().encode())
    asking.pool(job)
    if config.sampling.method in selection.NEEDS_BANK or labelling.wanted(job):
      asking.bank(job)
    if config.sampling.method in config_lib.ASKING:
      for name in asking.rounds(config):
        asking.codebook(job, name)
        asking.query(job, name)
        if not asking.response(job, name):
          return None
    if config.sampling.method is not config_lib.Method.LOCAL:
      selection.proxy(job)
    if labelling.wanted(job):
      labelling.request(job)
      if not labelling.labels(job):
        return None
    if config.train.task is config_lib.Task.DISTILL and config.train.steps:
      distillation.teacher(job)
      if config.distill.logits is config_lib.Logits.CACHED:
        distillation.logits(job)
    if learning.wanted(job):
      learning.model(job)
    summary = summary_lib.collect(job)
    if jax.process_index() == 0:
      files.write_json(work.path / "summary.json", summary)
      files.write(resolved, config.to_json().encode())
    if all(stage.skipped for stage in job.stages.values()):
      print("\nNothing to do: every stage was done before.")
    print("\n" + summary_lib.text(summary, work.path))
    return summary

"""What a stage is, and the job that runs stages one after the other.

A `Stage` is data: its name, what it reads (earlier stages, and fields of the
configuration), the function that does its work, the type of its result, and the
function that reads what it left. Each is declared beside its work; the order is
in `pipeline/__init__.py`. A `Job` runs them, skips those that are done, and
keeps what was read of them.
"""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
from typing import Any, Generic, TypeVar, cast
import zlib

import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.config import classes as classes_lib
from ecos_jax.data import problem as problem_lib
from ecos_jax.encoders import registry
from ecos_jax.pipeline import client as client_lib


class _Reference:
  """The name of a field or of a group; its attributes are those inside."""

  def __init__(self, value: object, name: str = ""):
    self._value = value
    self._name = name

  def __getattr__(self, field: str) -> "_Reference":
    dot = "." if self._name else ""
    return _Reference(getattr(self._value, field), self._name + dot + field)

  def __str__(self) -> str:
    return self._name


# Stands in for a configuration where a stage names the fields it depends on:
# `FIELDS.encoder.name`, or `FIELDS.bank` for the whole group.
FIELDS = cast(config_lib.Config, _Reference(config_lib.Config()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What a stage came to, as its manifest has it.

  Attributes:
    digest: Identifies what was made; later stages depend on it.
    text: The line for the terminal.
    count: Items that were worked on, for a rate; None where it makes no sense.
  """

  digest: str
  text: str
  count: int | None = None


R = TypeVar("R", bound=Result)
A = TypeVar("A")


@dataclasses.dataclass(frozen=True, eq=False)
class Stage(Generic[R, A]):
  """A step of the pipeline, which owns the folder of its name.

  Attributes:
    name: The stage and its folder.
    result: The type of its result.
    work: Fills the empty folder it is given and returns the result.
    fields: What of the configuration the result depends on, from `FIELDS`.
    inputs: Earlier stages that it reads, if the run has them.
    read: Returns what the stage left in its folder, which must have the digest
      of its result; see `Job.read`.
    brought: Digests of what it reads that no stage made, by name.
    answer: The client's answer that it takes; a remote one is waited for.
    resumable: Whether `work` goes on from what an interrupted call left.
    together: Whether all processes call `work`, and the result of process 0
      counts; otherwise process 0 calls it alone.
  """

  name: str
  result: type[R]
  work: Callable[["Job", Path], R]
  fields: tuple[object, ...] = ()
  inputs: tuple["Stage", ...] = ()
  read: Callable[[Path, str], A] | None = None
  brought: Callable[["Job"], dict[str, str]] = lambda job: {}
  answer: client_lib.Exchange | None = None
  resumable: bool = False
  together: bool = False

  def config(self, config: config_lib.Config) -> dict[str, Any]:
    """Returns the fields of a configuration that it depends on, by name."""
    names = tuple(map(str, self.fields))
    return {
      field: value
      for field, value in config_lib.flatten(config).items()
      if field in names or field.startswith(tuple(f"{n}." for n in names))
    }


def encoder(config: config_lib.Config) -> registry.Encoder:
  """Returns the public feature extractor.

  Raises:
    EcosError: There is none of that name, or its weights cannot be had.
  """
  options = config.encoder
  if config.of_features:
    pool = problem_lib.load(config.data, config.seed).pool
    return registry.identity(pool.feature_sources[0].dimension)
  plain = registry.get(
    options.name,
    image_size=options.image_size,
    weights=options.weights,
    dtype=options.dtype.value,
  )
  return registry.on_ground(plain, config.data.ground.value)


class Job:
  """A run: its configuration, its data and what its stages left.

  `job[STAGE]` is the result of a finished stage, and `job.get(STAGE)` is None
  for one that the run does not have.

  Attributes:
    config: What to run.
    work: The working directory.
    stages: The finished stages by name, in order.
    client: The simulated clients, or the remote ones.
    bank_checked: Whether this call has compared the checksums of the bank.
  """

  def __init__(
    self,
    config: config_lib.Config,
    work: workdir.Workdir,
    load: Callable[..., problem_lib.Problem] = problem_lib.load,
  ):
    """Prepares a run; nothing is read or computed yet."""
    self.config = config = config.resolved()
    self.work = work
    self.stages: dict[str, workdir.Stage] = {}
    self.client = client_lib.Client(
      config, work, lambda: self.problem, lambda: self.encoder
    )
    self.bank_checked = False
    self._load = load
    self._results: dict[str, Result] = {}
    self._artefacts: dict[str, Any] = {}

  def run(self, stage: Stage) -> None:
    """Runs or skips a stage and prints its line.

    Raises:
      WaitingError: The client is remote, and its answer is not there yet.
    """
    if stage.answer is not None and self.config.client.remote:
      if stage.answer.labels:
        self.client.check_labelled(stage.name, stage.answer)
      else:
        query = self.read(stage.inputs[0])
        self.client.check_answered(stage.name, stage.answer, query)
    inputs = {
      other.name: self[other].digest
      for other in stage.inputs
      if other.name in self.stages
    }
    done = self.work.stage(
      stage.name,
      stage.config(self.config),
      inputs | stage.brought(self),
      lambda path: dataclasses.asdict(stage.work(self, path)),
      resumable=stage.resumable,
      together=stage.together,
    )
    names = [field.name for field in dataclasses.fields(stage.result)]
    result = stage.result(**{name: done.result[name] for name in names})
    self.stages[stage.name] = done
    self._results[stage.name] = result
    time = "done before" if done.skipped else f"{done.seconds:9.1f} s"
    if result.count and done.seconds and not done.skipped:
      time += f"  {result.count / done.seconds:,.0f}/s"
    print(f"{stage.name:<9} {result.text:<54} {time}", flush=True)

  def __getitem__(self, stage: Stage[R, Any]) -> R:
    """Returns the result of a finished stage."""
    return cast(R, self._results[stage.name])

  def get(self, stage: Stage[R, Any]) -> R | None:
    """Returns the result of a finished stage; None if there is none."""
    return cast(R | None, self._results.get(stage.name))

  def path(self, stage: Stage) -> Path:
    """Returns the folder of a stage."""
    return self.work.path / stage.name

  def read(self, stage: Stage[Any, A]) -> A:
    """Returns what a finished stage left; from the disk at the first call.

    Raises:
      EcosError: It is damaged.
    """
    if stage.name not in self._artefacts:
      assert stage.read is not None
      digest = self[stage].digest
      self._artefacts[stage.name] = stage.read(self.path(stage), digest)
    return self._artefacts[stage.name]

  def keep(self, stage: Stage[Any, A], artefact: A) -> A:
    """Returns what a stage has just written; `read` will not read it again."""
    self._artefacts[stage.name] = artefact
    return artefact

  def key(self, stage: str) -> jax.Array:
    """Returns the random key of a stage."""
    root = jax.random.key(self.config.seed)
    return jax.random.fold_in(root, zlib.crc32(stage.encode()))

  @functools.cached_property
  def encoder(self) -> registry.Encoder:
    """The public feature extractor."""
    return encoder(self.config)

  @functools.cached_property
  def problem(self) -> problem_lib.Problem:
    """The data, made or read when a stage first needs them.

    Raises:
      EcosError: They are not to be had, or differ from those the run began
        with.
    """
    problem = self._load(
      self.config.data,
      self.config.seed,
      remote=self.config.client.remote,
      listings=self.work.path / "pool",
    )
    pool = self.stages.get("pool")
    if pool is not None and (
      pool.result["digest"] != problem.pool.digest
      or pool.result["simulation"] != simulation_digest(problem)
    ):
      where = "sources" if self.config.data.sources else "dir"
      raise errors.EcosError(
        f"the data of `data.{where}` are others than when {pool.path} "
        "was made: put the old ones back, or take another `workdir`"
      )
    return problem

  @property
  def classes(self) -> int:
    """The number of classes.

    Raises:
      EcosError: It is not known.
    """
    names = classes_lib.named(self.config.data.classes)
    words = ((), classes_lib.FOLDERS, classes_lib.NUMBERS)
    classes = self.problem.classes if names in words else len(names)
    if not classes:
      raise errors.EcosError(
        "`data.classes` must name the classes: the pool has no labels"
      )
    return classes

  @functools.cached_property
  def test(self) -> tuple[np.ndarray, np.ndarray] | None:
    """Test images [n, s, s, 3] and labels [n]; None where there are none."""
    test = self.problem.test
    if test is None:
      return None
    labels = test.labels(np.arange(len(test)))
    known = np.flatnonzero(labels >= 0)
    if not len(known):
      return None
    images = test.images(known, self.config.train.image_size)
    return images, labels[known]


def simulation_digest(problem: problem_lib.Problem) -> str | None:
  """Returns what identifies the client's and the test's data, if any."""
  parts = [part.digest for part in (problem.client, problem.test) if part]
  return files.digest(*map(str.encode, parts)) if parts else None


def percent(share: float | None) -> str:
  """Returns '43.2 %', or 'unknown' for None."""
  return "unknown" if share is None else f"{100 * share:.1f} %"

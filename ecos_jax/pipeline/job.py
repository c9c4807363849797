"""One run while it goes: its configuration, its data, its finished stages."""

from collections.abc import Callable
import functools
from pathlib import Path
from typing import Any
import zlib

import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.cloud import bank
from ecos_jax.data import pools
from ecos_jax.data import problem as problem_lib
from ecos_jax.encoders import registry


def encoder(config: config_lib.Config) -> registry.Encoder:
  """Returns the public feature extractor.

  Raises:
    EcosError: There is none of that name, or its weights cannot be had.
  """
  options = config.encoder
  if config.of_features:
    pool = problem_lib.load(config.data, config.seed).pool
    return registry.identity(pool.feature_sources[0].dimension)
  return registry.get(
    options.name,
    image_size=options.image_size,
    weights=options.weights,
    dtype=options.dtype.value,
  )


class Job:
  """One run: its configuration, its workdir and its finished stages.

  Attributes:
    config: What to run.
    work: Where the artefacts are.
    verify: Whether to compare checksums of a bank that was made before.
    stages: The stages that are finished, by name, in order.
  """

  def __init__(
    self,
    config: config_lib.Config,
    work: workdir.Workdir,
    verify: bool = False,
    load: Callable[..., problem_lib.Problem] = problem_lib.load,
  ):
    """Prepares a run; nothing is read or computed yet."""
    self.config = config
    self.work = work
    self.verify = verify
    self._load = load
    self.stages: dict[str, workdir.Stage] = {}
    self._checked = False

  @functools.cached_property
  def problem(self) -> problem_lib.Problem:
    """The data, made or read when a stage first needs them.

    Raises:
      EcosError: They are not to be had, or others than the run began with.
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
      or pool.result["simulation"] != self.simulation_digest(problem)
    ):
      where = "sources" if self.config.data.sources else "dir"
      raise errors.EcosError(
        f"the data of --config.data.{where} are others than when {pool.path} "
        "was made: put the old ones back, or take another --workdir"
      )
    return problem

  @property
  def client(self) -> pools.Source:
    """The simulated client's data."""
    client = self.problem.client
    assert client is not None  # config.validate sees to it
    return client

  @property
  def classes(self) -> int:
    """How many classes there are.

    Raises:
      EcosError: That is not known.
    """
    classes = len(self.config.data.classes) or self.problem.classes
    if not classes:
      raise errors.EcosError(
        "--config.data.classes must name the classes: the pool has no labels"
      )
    return classes

  def simulation_digest(self, problem: problem_lib.Problem) -> str | None:
    """Returns what identifies the client's and the test's data, if any."""
    parts = [part.digest for part in (problem.client, problem.test) if part]
    return files.digest(*map(str.encode, parts)) if parts else None

  @functools.cached_property
  def encoder(self) -> registry.Encoder:
    """The public feature extractor."""
    return encoder(self.config)

  @functools.cached_property
  def feature_bank(self) -> bank.FeatureBank:
    """The finished bank."""
    stage = self.stages["bank"]
    return bank.FeatureBank.open(stage.path, stage.result["digest"])

  def checked_bank(self, *, alone: bool = False) -> bank.FeatureBank:
    """Returns the finished bank, after its checksums if it was made before.

    Args:
      alone: Whether the other processes do not call this as well.

    Raises:
      BankError: A shard was altered.
    """
    if self.stages["bank"].skipped and not self._checked:
      self.feature_bank.verify(alone=alone)
      self._checked = True
    return self.feature_bank

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

  @functools.cached_property
  def ledger(self) -> Path:
    """The simulated client's ledger; a remote one has its own."""
    folder = self.work.path / "client"
    folder.mkdir(exist_ok=True)
    return folder / "ledger"

  def key(self, stage: str) -> jax.Array:
    """Returns the random key of a stage."""
    root = jax.random.key(self.config.seed)
    return jax.random.fold_in(root, zlib.crc32(stage.encode()))

  def stage(
    self,
    name: str,
    fields: str,
    inputs: str,
    work: Callable[[Path], dict[str, Any]],
    *,
    resumable: bool = False,
    together: bool = False,
    brought: dict[str, str] | None = None,
  ) -> None:
    """Runs or skips a stage and prints its line.

    Args:
      name: The stage.
      fields: Fields of the configuration that it depends on; one that ends in
        a dot stands for its group.
      inputs: Earlier stages that it reads.
      work: As in `Workdir.stage`; its result has a `digest`, and for the line
        a `text` and a `count` (None where a rate makes no sense).
      resumable: As in `Workdir.stage`.
      together: As in `Workdir.stage`.
      brought: Digests of what it reads that no stage made, by name.
    """
    wanted = tuple(fields.split())
    leaves = config_lib.flatten(self.config)
    if not self.config.codebook.first_round:
      # They decide nothing then, and runs from before there were two go on.
      del leaves["codebook.first_round"], leaves["privacy.first_part"]
    unknown = [w for w in wanted if not any(k.startswith(w) for k in leaves)]
    assert not unknown, unknown
    stage = self.work.stage(
      name,
      {k: v for k, v in leaves.items() if k.startswith(wanted)},
      {i: self.stages[i].result["digest"] for i in inputs.split()}
      | (brought or {}),
      work,
      resumable=resumable,
      together=together,
    )
    self.stages[name] = stage
    time = "done before" if stage.skipped else f"{stage.seconds:9.1f} s"
    count = stage.result["count"]
    if count and stage.seconds and not stage.skipped:
      time += f"  {count / stage.seconds:,.0f}/s"
    print(f"{name:<9} {stage.result['text']:<50} {time}", flush=True)

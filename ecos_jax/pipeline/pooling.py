"""The pool and its features: the stages before anybody is asked."""

import collections
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.cloud import adopt
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import encode
from ecos_jax.config import classes as classes_lib
from ecos_jax.pipeline import grown
from ecos_jax.pipeline import stages
from ecos_jax.pipeline.stages import FIELDS
from ecos_jax.pipeline.stages import Job
from ecos_jax.pipeline.stages import Result
from ecos_jax.pipeline.stages import Stage

UNREADABLE = "unreadable.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolResult(Result):
  """What the pool holds.

  Attributes:
    simulation: Identifies the simulated client's and the test's data.
    named: The sources, as the configuration names them.
    size: Number of samples, N.
    sizes: Samples of each source, by name.
    classes: Samples of each class, by name; none are counted in TFDS splits.
    unreadable: Files that cannot be read and are left out.
    others: Files that are no images by their names, by suffix; left out.
    client_share: Share of the samples from the client's domain, if known.
  """

  simulation: str | None
  named: list[str | None]
  size: int
  sizes: dict[str, int]
  classes: dict[str, int]
  unreadable: int
  others: dict[str, int]
  client_share: float | None


def _pool(job: Job, path: Path) -> PoolResult:
  """Reads or makes the public pool; what it holds is counted, not copied."""
  pool, source = job.problem.pool, job.problem.client_source
  unreadable = [
    f"{source.name}/{file.name}\t{file.why}"
    for source in pool.sources
    for file in getattr(source, "unreadable", ())
  ]
  for features in pool.feature_sources:
    # A missing row of metadata is found before anybody is asked.
    features.metadata(np.array([0]))
  kind = "features" if pool.feature_sources else "images"
  text = f"{len(pool):,} {kind} from {len(pool.sizes)} sources"
  if unreadable:
    lines = "".join(f"{line}\n" for line in unreadable)
    files.write(path / UNREADABLE, lines.encode(errors="surrogateescape"))
    text += f", {len(unreadable):,} unreadable"
  others = collections.Counter[str]()
  for each in pool.sources:
    others.update(getattr(each, "others", {}))
  if others:
    text += f", {others.total():,} files of other kinds left out"
  share = None if source is None else pool.sizes[source] / len(pool)
  if not pool.feature_sources:
    np.save(path / grown.FINGERPRINTS, pool.fingerprints())
  return PoolResult(
    digest=pool.digest,
    text=text,
    simulation=stages.simulation_digest(job.problem),
    named=named(job.config.data),
    size=len(pool),
    sizes=dict(zip(pool.source_names, pool.sizes, strict=True)),
    classes=_class_sizes(job),
    unreadable=len(unreadable),
    others=dict(others),
    client_share=share,
  )


def named(data: config_lib.Data) -> list[str | None]:
  """Returns the sources as the configuration names them."""
  return [*data.sources, data.client_data, data.test_data, data.dir]


def _class_sizes(job: Job) -> dict[str, int]:
  """Returns the samples of each class in the pool, by name.

  Raises:
    EcosError: A named class has none, and it is not the client that labels.
  """
  problem, data = job.problem, job.config.data
  pool, names = problem.pool, problem.class_names
  if pool.feature_sources or not problem.classes:
    return {}
  sizes = pool.class_sizes(problem.classes)
  empty = [name for name, size in zip(names, sizes, strict=False) if not size]
  if (
    empty
    and job.config.train.task is not config_lib.Task.CLIENT
    # The names of a TFDS dataset's classes were compared already.
    and not any(text.startswith("tfds:") for text in data.sources)
  ):
    found = [getattr(source, "class_names", ()) for source in pool.sources]
    raise errors.EcosError(
      "`data.classes`: the pool has no sample of "
      + classes_lib.missing(empty, itertools.chain(*found))
    )
  names = names or tuple(map(str, range(problem.classes)))
  return dict(zip(names, sizes, strict=True))


POOL = Stage(
  "pool",
  PoolResult,
  _pool,
  # Where the data lie does not matter, but what they are: their digest.
  fields=(
    FIELDS.data.classes,
    FIELDS.data.ground,
    FIELDS.data.labelled_only,
    FIELDS.data.benchmark,
    FIELDS.data.client,
    FIELDS.data.split,
    FIELDS.data.train_images,
    FIELDS.data.test_images,
    FIELDS.data.persons,
    FIELDS.data.clients,
    FIELDS.data.alpha,
    FIELDS.data.client_images,
    FIELDS.seed,
  ),
  # Listings of folders, checked for unreadable files, are kept.
  resumable=True,
)


def _bank(job: Job, path: Path) -> Result:
  """Encodes the pool."""
  pool, options = job.problem.pool, job.config.bank
  earlier = None
  if pool.feature_sources:
    bank = adopt.of_features(path, pool, job.encoder, options.shard_rows)
  else:
    earlier = grown.features(job.config, pool, job.encoder.digest)
    bank = encode.build(
      path,
      pool,
      job.encoder,
      dtype=options.dtype.value,
      shard_rows=options.shard_rows,
      batch_size=job.config.encoder.batch_size,
      earlier=earlier,
    )
  rows, dimension = bank.shape
  text = f"{rows:,} x {dimension} features by {job.encoder.name}"
  if earlier is not None:
    text += f", {np.sum(earlier.rows < 0):,} of them new"
  return Result(digest=bank.digest, text=text, count=rows)


BANK = Stage(
  "bank",
  Result,
  _bank,
  fields=(
    FIELDS.encoder.name,
    FIELDS.encoder.image_size,
    FIELDS.encoder.dtype,
    FIELDS.bank,
  ),
  inputs=(POOL,),
  read=bank_lib.FeatureBank.open,
  brought=lambda job: {"encoder": job.encoder.digest},
  resumable=True,
  together=True,
)


def checked_bank(job: Job, *, alone: bool = False) -> bank_lib.FeatureBank:
  """Returns the finished bank, after its checksums if it was made before.

  Args:
    job: The run.
    alone: Whether the other processes do not call this as well.

  Raises:
    BankError: A shard was altered.
  """
  bank = job.read(BANK)
  if job.stages[BANK.name].skipped and not job.bank_checked:
    bank.verify(alone=alone)
    job.bank_checked = True
  return bank

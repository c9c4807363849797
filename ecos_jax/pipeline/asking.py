"""From the pool to the client's answer: pool, bank, codebook, query, response.

The last three are a round. With `codebook.first_round` the client is asked in
two: the codebook of the second lies in the clusters that the first answer
leaves.
"""

import collections
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import encode
from ecos_jax.cloud import question
from ecos_jax.cloud import scores
from ecos_jax.config import classes as classes_lib
from ecos_jax.config import limits
from ecos_jax.messages import wire
from ecos_jax.pipeline import brought
from ecos_jax.pipeline import client
from ecos_jax.pipeline import grown
from ecos_jax.pipeline import stages
from ecos_jax.pipeline.stages import FIELDS
from ecos_jax.pipeline.stages import Job
from ecos_jax.pipeline.stages import Result
from ecos_jax.pipeline.stages import Stage
from ecos_jax.privacy import accounting

UNREADABLE = "unreadable.txt"
QUERY, RESPONSE = "query.safetensors", "response.safetensors"


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
    others: Files that do not end as images do and are left out, by suffix.
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
    bank = encode.of_features(path, pool, job.encoder, options.shard_rows)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookResult(Result):
  """How k-means ended; `reseeded` is how many empty clusters were refilled."""

  reseeded: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MessageResult(Result):
  """A message to the client, of `bytes` bytes."""

  bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResponseResult(MessageResult):
  """The clients' answers.

  Attributes:
    statement: What the one that cost its client most states of its privacy.
    answers: How many there are, one a client.
  """

  statement: dict[str, Any]
  answers: int


class Round(NamedTuple):
  """One question to the client, by its stages.

  Attributes:
    codebook: k-means on the bank, or on what the first round leaves of it.
    query: What the client receives.
    response: What it answers, or what several clients answer.
  """

  codebook: Stage[CodebookResult, codebook_lib.Codebook]
  query: Stage[MessageResult, messages.Query]
  response: Stage[ResponseResult, list[messages.Response]]


def rounds(config: config_lib.Config) -> tuple[Round, ...]:
  """Returns the rounds of a run, in order."""
  return (FIRST, LAST) if config.codebook.first_round else (LAST,)


def terms(config: config_lib.Config, *, first: bool = False) -> messages.Terms:
  """Returns the terms that a query proposes; the simulated client takes them.

  Args:
    config: Of the run.
    first: Whether the query is that of the first of two rounds.

  Raises:
    ProtocolError: One is out of range.
  """
  privacy = config.privacy
  sigma = privacy.sigma
  rest = privacy.gamma, privacy.delta, privacy.relation.value
  if config.codebook.first_round:
    of_first, of_second = accounting.split(sigma, privacy.first_part, *rest)
    sigma = of_first if first else of_second
  return messages.Terms(sigma, *rest, unit=privacy.unit.value)


def classes(job: Job) -> int:
  """Returns the number of classes that the query asks about; 0: none.

  Raises:
    EcosError: It is not known.
  """
  return job.classes if labelled_by_votes(job.config) else 0


def labelled_by_votes(config: config_lib.Config) -> bool:
  """Returns whether the answer to the query labels the proxy."""
  return (
    config.train.task is config_lib.Task.CLIENT
    and config.train.steps > 0
    and config.labelling.by is config_lib.LabelledBy.VOTES
  )


def check_sizes(job: Job) -> None:
  """Checks that a query can hold what will be asked, before any work is done.

  Raises:
    ConfigError: It cannot.
  """
  if job.config.sampling.method not in config_lib.ASKING:
    return
  d, book = job.encoder.dimension, job.config.codebook
  if d > limits.MAX_DIMENSION:
    raise errors.ConfigError(
      f"features of d = {d} are longer than a query may hold "
      f"({limits.MAX_DIMENSION}): give shorter ones, such as principal "
      "components, or another `encoder.name`"
    )
  rows = book.size
  if book.question is config_lib.Question.SIGNS:
    rows = book.directions
  # Of float32.
  if 4 * rows * d + wire.MAX_HEADER_BYTES > wire.MAX_BYTES:
    raise errors.ConfigError(
      f"`codebook.size`={rows} centroids of d = {d} are more than the "
      f"{wire.MAX_BYTES >> 20} MiB that a query may have: ask about fewer"
    )


def _codebook(job: Job, path: Path, *, first: bool) -> CodebookResult:
  """Clusters the bank, or what the first round leaves of it."""
  config, within = job.config.codebook, None
  if first:
    config = dataclasses.replace(config, size=config.first_round)
  elif config.first_round:
    config = dataclasses.replace(config, size=config.size - config.first_round)
    within = _covered(job, config.size)
  fitted = codebook_lib.build(
    path,
    checked_bank(job),
    config,
    # Under another name the first codebook would be another one.
    job.key("coarse_codebook" if first else "codebook"),
    distributed.mesh(),
    within,
    grown.codebook(job.config),
  )
  book = job.keep(
    FIRST.codebook if first else LAST.codebook, codebook_lib.read(path)
  )
  rows = job.read(BANK).shape[0]
  text = f"{config.size} centroids, "
  if book.directions is not None:
    text += f"{len(book.directions.axes)} directions, "
  if fitted is None:
    text += f"kept from {job.config.data.earlier}"
  else:
    state = "converged" if fitted.converged else "not converged"
    text += f"{fitted.iterations} iterations, {state}"
  if within is not None:
    text += f", in {within.size / rows:.0%} of the pool"
  return CodebookResult(
    digest=book.digest,
    text=text,
    count=rows,
    reseeded=0 if fitted is None else fitted.reseeded,
  )


def _covered(job: Job, rows: int) -> codebook_lib.Part:
  """Returns the clusters, of `rows` rows at least, where the client has votes.

  All processes must call this.
  """
  book = job.read(FIRST.codebook)

  def decide() -> list[bool]:
    answer = question.combine(job.read(FIRST.response), job.read(FIRST.query))
    assert answer.scores is not None
    votes = scores.posterior_mean(answer.scores, book.sizes, answer.sigma)
    return scores.covered(votes, book.sizes, rows).tolist()

  # By process 0, since others might round otherwise.
  return codebook_lib.Part(book, np.array(distributed.first(decide)))


def _query(job: Job, path: Path, *, exchange: client.Exchange) -> MessageResult:
  """Writes what the client receives."""
  here = FIRST if exchange.first else LAST
  query = question.make(
    job.read(here.codebook),
    job.encoder,
    terms(job.config, first=exchange.first),
    job.config.codebook,
    classes(job),
  )
  return sent(path / exchange.message, job.keep(here.query, query))


def sent(path: Path, message: messages.Question) -> MessageResult:
  """Writes a message to the client."""
  data = message.to_bytes()
  files.write(path, data)
  text = f"{len(data):,} bytes down"
  return MessageResult(digest=message.digest, text=text, bytes=len(data))


def _response(
  job: Job, path: Path, *, exchange: client.Exchange
) -> ResponseResult:
  """Takes the clients' answers."""
  here = FIRST if exchange.first else LAST
  query = job.read(here.query)
  answers = job.keep(here.response, job.client.answers(query, exchange))
  dearest = max(answers, key=accounting.alone)
  statement = dataclasses.replace(
    dearest.statement, epsilon=accounting.alone(dearest)
  )
  size = sum(len(answer.to_bytes()) for answer in answers)
  text = f"{size:,} bytes up"
  if len(answers) > 1:
    text += f" from {len(answers):,} clients"
  if all(answer.statement.private for answer in answers):
    text += f", epsilon {statement.epsilon:.4g}"
  else:
    text += ", NOT PRIVATE (noise from a seed)"
  return ResponseResult(
    digest=brought.write(path, exchange.answer, answers),
    text=text,
    bytes=size,
    statement=dataclasses.asdict(statement),
    answers=len(answers),
  )


def _responses(name: str, path: Path, digest: str) -> list[messages.Response]:
  return brought.read(path, name, digest)


def _round(prefix: str, *, first: bool, before: tuple[Stage, ...]) -> Round:
  """Returns a round.

  Args:
    prefix: What the names of its stages and files begin with.
    first: Whether it is the first of two.
    before: Stages of the round before.
  """
  codebook = Stage(
    f"{prefix}codebook",
    CodebookResult,
    functools.partial(_codebook, first=first),
    fields=(FIELDS.codebook, FIELDS.seed),
    inputs=(BANK, *before),
    brought=lambda job: (
      {"kept": kept.digest} if (kept := grown.codebook(job.config)) else {}
    ),
    read=codebook_lib.read,
    together=True,
  )
  exchange = client.Exchange(
    f"{prefix}query",
    f"{prefix}{QUERY}",
    f"{prefix}{RESPONSE}",
    first=first,
    following="query" if first else "request",
  )
  query = Stage(
    exchange.asked,
    MessageResult,
    functools.partial(_query, exchange=exchange),
    fields=(
      FIELDS.privacy.sigma,
      FIELDS.privacy.gamma,
      FIELDS.privacy.delta,
      FIELDS.privacy.relation,
      FIELDS.privacy.unit,
      FIELDS.privacy.first_part,
      FIELDS.codebook.question,
      FIELDS.codebook.votes,
      FIELDS.codebook.weight,
    ),
    inputs=(codebook,),
    brought=lambda job: {"classes": str(n)} if (n := classes(job)) else {},
    read=client.reader(messages.Query, exchange.message),
  )
  response = Stage(
    f"{prefix}response",
    ResponseResult,
    functools.partial(_response, exchange=exchange),
    fields=(FIELDS.privacy, FIELDS.client.remote),
    inputs=(query,),
    read=functools.partial(_responses, exchange.answer),
    answer=exchange,
    # What an interrupted call took need not be brought again.
    resumable=True,
  )
  return Round(codebook, query, response)


FIRST = _round("first_", first=True, before=())
LAST = _round("", first=False, before=(FIRST.codebook, FIRST.response))

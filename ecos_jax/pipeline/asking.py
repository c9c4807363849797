"""From the features of the pool to the client's answer.

Codebook, query and response are a round. With `codebook.first_round` the client
is asked in two: the codebook of the second lies in the clusters that the first
answer leaves.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import question
from ecos_jax.cloud import scores
from ecos_jax.config import limits
from ecos_jax.messages import wire
from ecos_jax.pipeline import brought
from ecos_jax.pipeline import client
from ecos_jax.pipeline import grown
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline.stages import FIELDS
from ecos_jax.pipeline.stages import Job
from ecos_jax.pipeline.stages import Result
from ecos_jax.pipeline.stages import Stage
from ecos_jax.privacy import accounting

QUERY, RESPONSE = "query.safetensors", "response.safetensors"
# The share of 1 / sigma^2 that the first of two answers has.
_FIRST_PART = 0.2


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
    of_first, of_second = accounting.split(sigma, _FIRST_PART, *rest)
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
  signs = book.question is not config_lib.Question.COUNTS
  p = min(book.directions, d) if signs else 0
  counts = book.question is not config_lib.Question.SIGNS
  rows = p + (book.size if counts else 0)
  # Of float32.
  if 4 * rows * d + wire.MAX_HEADER_BYTES > wire.MAX_BYTES:
    sizes = f"`codebook.size`={book.size} centroids" if counts else ""
    if signs:
      sizes += " and " * counts + f"`codebook.directions`={p} directions"
    raise errors.ConfigError(
      f"{sizes} of d = {d} are more than the "
      f"{wire.MAX_BYTES >> 20} MiB that a query may have: ask about fewer"
    )
  if not signs:
    return
  votes, weight = min(book.votes, p), book.weight if counts else 0
  most = limits.max_sigma(votes + 1 + weight**2)
  if job.config.privacy.sigma > most:
    raise errors.ConfigError(
      f"`privacy.sigma`={job.config.privacy.sigma:g} must be at most "
      f"{most:g} with `codebook.votes`={votes}"
      + (f" and `codebook.weight`={weight}" if counts else "")
      + ": lower them, or give `codebook.question`=counts"
    )
  if classes(job) * (p + 1) > limits.MAX_SUMS:
    raise errors.ConfigError(
      f"an answer holds at most {limits.MAX_SUMS:,} sums, so "
      f"`codebook.directions`={p} are too many for {classes(job):,} classes: "
      "lower it, or give `labelling.by`=knn"
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
    pooling.checked_bank(job),
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
  rows = job.read(pooling.BANK).shape[0]
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
    inputs=(pooling.BANK, *before),
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
    read=lambda path, digest: brought.read(path, exchange.answer, digest),
    answer=exchange,
    # What an interrupted call took need not be brought again.
    resumable=True,
  )
  return Round(codebook, query, response)


FIRST = _round("first_", first=True, before=())
LAST = _round("", first=False, before=(FIRST.codebook, FIRST.response))

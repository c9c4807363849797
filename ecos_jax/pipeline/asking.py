"""From the pool to the client's answer: pool, bank, codebook, query, response.

Each stage is a function that names what its result depends on and does its work
in a folder of the workdir. The client is simulated here unless it is remote;
between cloud and client pass the bytes of a query and of a response and nothing
else, and they are counted.

With `codebook.first_round` the client is asked twice. The stages codebook,
query and response of the first round have names that begin with `first_`; the
second codebook lies in the clusters that the first answer leaves.
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import files
from ecos_jax import messages
from ecos_jax import workdir
from ecos_jax.client import respond
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import encode
from ecos_jax.cloud import question
from ecos_jax.cloud import scores
from ecos_jax.config import checks
from ecos_jax.messages import wire
from ecos_jax.pipeline.job import Job
from ecos_jax.privacy import accounting
from ecos_jax.privacy import mechanisms

_Message = TypeVar("_Message")

UNREADABLE = "unreadable.txt"
# What the simulated client's ledger calls its data.
SIMULATED = "simulated"
_QUERY = "query.safetensors"
RESPONSE = "response.safetensors"
# What the names of the first of two rounds begin with.
FIRST = "first_"
_INSTRUCTIONS = """
Waiting for the client{which}. Carry this file to it:
  {query}
There, with its private data in DIR and its ledger in LEDGER:
  python -m ecos_jax.client.respond --query={query.name} --data={data} \\
    --epsilon=EPSILON --ledger=LEDGER --out={brought.name}
Bring the answer back as
  {brought}
and run this command again."""


def pool(job: Job) -> None:
  """Reads or makes the public pool; what it holds is counted, not copied."""

  def work(path: Path) -> dict[str, Any]:
    pool, client = job.problem.pool, job.problem.client_source
    unreadable = [
      f"{source.name}/{file.name}\t{file.why}"
      for source in pool.sources
      for file in getattr(source, "unreadable", ())
    ]
    for source in pool.feature_sources:
      # Whether there is a row for each is known before anybody is asked.
      source.metadata(np.array([0]))
    kind = "features" if pool.feature_sources else "images"
    text = f"{len(pool):,} {kind} from {len(pool.sizes)} sources"
    if unreadable:
      lines = "".join(f"{line}\n" for line in unreadable)
      named = lines.encode(errors="surrogateescape")
      files.write(path / UNREADABLE, named)
      text += f", {len(unreadable):,} unreadable"
    return {
      "digest": pool.digest,
      "simulation": job.simulation_digest(job.problem),
      "size": len(pool),
      "sizes": dict(zip(pool.source_names, pool.sizes, strict=True)),
      "unreadable": len(unreadable),
      "client_share": (
        None if client is None else pool.sizes[client] / len(pool)
      ),
      "count": None,
      "text": text,
    }

  # What the folders hold was listed and checked before: that is kept.
  job.stage("pool", "data. seed", "", work, resumable=True)
  checks.check_pool(job.config, job.stages["pool"].result["size"])


def bank(job: Job) -> None:
  """Encodes the pool."""

  def work(path: Path) -> dict[str, Any]:
    pool = job.problem.pool
    if pool.feature_sources:
      files = [f for source in pool.feature_sources for f in source.files]
      bank = encode.link(
        path, files, encoder=job.encoder.digest, pool=pool.digest
      )
    else:
      bank = encode.build(
        path,
        pool,
        job.encoder,
        dtype=job.config.bank.dtype.value,
        shard_rows=job.config.bank.shard_rows,
        batch_size=job.config.encoder.batch_size,
      )
    rows, dimension = bank.shape
    return {
      "digest": bank.digest,
      "count": rows,
      "text": f"{rows:,} x {dimension} features by {job.encoder.name}",
    }

  job.stage(
    "bank",
    "encoder.name encoder.image_size encoder.dtype bank.",
    "pool",
    work,
    resumable=True,
    together=True,
    brought={"encoder": job.encoder.digest},
  )
  if job.verify:
    job.checked_bank()


def rounds(config: config_lib.Config) -> tuple[str, ...]:
  """Returns what the names of each round's stages begin with, in order."""
  return (FIRST, "") if config.codebook.first_round else ("",)


def codebook(job: Job, name: str = "") -> None:
  """Clusters the bank, or what the first round leaves of it.

  Args:
    job: The run.
    name: Of the round, one of `rounds`; so below.
  """
  config = job.config.codebook
  second = bool(config.first_round) and not name
  inputs = "bank"
  if name:
    config = dataclasses.replace(config, size=config.first_round)
  elif second:
    config = dataclasses.replace(config, size=config.size - config.first_round)
    inputs += f" {FIRST}codebook {FIRST}response"

  def work(path: Path) -> dict[str, Any]:
    within = _covered(job, config.size) if second else None
    fitted = codebook_lib.build(
      path,
      job.checked_bank(),
      config,
      job.key("coarse_codebook" if name else "codebook"),
      distributed.mesh(),
      within,
    )
    state = "converged" if fitted.converged else "not converged"
    count = job.feature_bank.shape[0]
    text = f"{config.size} centroids, {fitted.iterations} iterations, {state}"
    if within is not None:
      text += f", in {within.size / count:.0%} of the pool"
    return {
      "digest": codebook_lib.read(path).digest,
      "reseeded": fitted.reseeded,
      "count": count,
      "text": text,
    }

  job.stage(f"{name}codebook", "codebook. seed", inputs, work, together=True)


def _covered(job: Job, rows: int) -> codebook_lib.Part:
  """Returns the clusters, of `rows` rows at least, where the client has votes.

  All processes must call this.
  """
  book = finished_codebook(job, FIRST)

  def decide() -> list[bool]:
    answer = finished_response(job, FIRST)
    votes = scores.posterior_mean(
      answer.scores, book.sizes, answer.statement.sigma
    )
    return scores.covered(votes, book.sizes, rows).tolist()

  # By process 0, since others might round otherwise.
  return codebook_lib.Part(book, np.array(distributed.first(decide)))


def finished_codebook(job: Job, name: str = "") -> codebook_lib.Codebook:
  """Returns the finished codebook of a round.

  Raises:
    EcosError: It is damaged.
  """
  stage = job.stages[f"{name}codebook"]
  return codebook_lib.read(stage.path, stage.result["digest"])


def query(job: Job, name: str = "") -> None:
  """Writes what the client receives."""

  def work(path: Path) -> dict[str, Any]:
    query = question.make(
      finished_codebook(job, name).centroids,
      job.encoder,
      terms(job, name),
    )
    data = query.to_bytes()
    files.write(path / f"{name}{_QUERY}", data)
    return {
      "digest": query.digest,
      "bytes": len(data),
      "count": None,
      "text": f"{len(data):,} bytes down",
    }

  fields = "privacy.sigma privacy.gamma privacy.delta privacy.relation"
  if job.config.codebook.first_round:
    fields += " privacy.first_part"
  job.stage(f"{name}query", fields, f"{name}codebook", work)


def response(job: Job, name: str = "") -> bool:
  """Takes the client's answer, simulated or brought to the workdir.

  Returns:
    Whether it is there.
  """
  brought = job.work.path / f"{name}{RESPONSE}"
  remote = job.config.client.remote
  if remote and not distributed.first(
    lambda: brought.exists() or job.work.done(f"{name}response")
  ):
    which = "first of two questions" if name else "second of two questions"
    print(
      _INSTRUCTIONS.format(
        which=f", {which}" if job.config.codebook.first_round else "",
        query=job.stages[f"{name}query"].path / f"{name}{_QUERY}",
        brought=brought,
        data="features:DIR" if job.config.of_features else "DIR",
      )
    )
    return False

  def work(path: Path) -> dict[str, Any]:
    query = message(
      job, f"{name}query", f"{name}{_QUERY}", messages.Query.from_bytes
    )
    data = (
      wire.read_file(brought)
      if remote
      else _simulated(job, query.to_bytes(), name)
    )
    statement = question.read(data, query).statement
    files.write(path / f"{name}{RESPONSE}", data)
    privacy = f"epsilon {statement.epsilon:.4g}"
    if not statement.private:
      privacy = "NOT PRIVATE (noise from a seed)"
    return {
      "digest": files.digest(data),
      "bytes": len(data),
      "statement": dataclasses.asdict(statement),
      "count": None,
      "text": f"{len(data):,} bytes up, {privacy}",
    }

  job.stage(f"{name}response", "privacy. client.remote", f"{name}query", work)
  return True


def finished_response(job: Job, name: str = "") -> messages.Response:
  """Returns the client's answer in a round.

  Raises:
    EcosError: It is damaged.
  """
  return message(
    job, f"{name}response", f"{name}{RESPONSE}", messages.Response.from_bytes
  )


def _simulated(job: Job, query: bytes, name: str) -> bytes:
  """Returns the response of the simulated client."""
  seed = job.config.privacy.insecure_noise_seed
  if name and seed is not None:
    # Noise that has nothing to do with that of the second round.
    seed += 2**64
  mechanism = mechanisms.Mechanism(terms(job, name), seed)
  return respond.answer(
    query,
    lambda: job.client,
    mechanism,
    job.ledger,
    simulated_tag(job),
    consent=lambda text: None,
    encoder=job.encoder,
    batch_size=job.config.encoder.batch_size,
  )


def simulated_tag(job: Job) -> str:
  """Returns the name of the simulated data in the ledger.

  The ledger hands a stored answer out again; one whose noise came from a seed
  must not stand for one with real noise, nor for that of another seed.
  """
  seed = job.config.privacy.insecure_noise_seed
  return SIMULATED if seed is None else f"{SIMULATED}, noise of seed {seed}"


def terms(job: Job, name: str = "") -> messages.Terms:
  """Returns the terms that the query proposes and the simulation takes.

  Raises:
    ProtocolError: One is out of range.
  """
  privacy = job.config.privacy
  sigma = privacy.sigma
  rest = privacy.gamma, privacy.delta, privacy.relation.value
  if job.config.codebook.first_round:
    first, second = accounting.split(sigma, privacy.first_part, *rest)
    sigma = first if name else second
  return messages.Terms(sigma, *rest)


def message(
  job: Job, stage: str, file: str, read: Callable[[bytes], _Message]
) -> _Message:
  """Returns the message that a finished stage left.

  Raises:
    EcosError: It is damaged.
  """
  finished = job.stages[stage]
  return read(
    workdir.read_bytes(finished.path / file, finished.result["digest"])
  )

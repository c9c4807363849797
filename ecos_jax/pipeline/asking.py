"""From the pool to the client's answer: pool, bank, codebook, query, response.

Each stage is a function that names what its result depends on and does its work
in a folder of the workdir. The client is simulated here unless it is remote;
between cloud and client pass the bytes of a query and of a response and nothing
else, and they are counted.
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ecos_jax import distributed
from ecos_jax import protocol
from ecos_jax import wire
from ecos_jax import workdir
from ecos_jax.client import respond
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import encode
from ecos_jax.cloud import query as query_lib
from ecos_jax.pipeline.job import Job
from ecos_jax.privacy import mechanisms

_Message = TypeVar("_Message")

UNREADABLE = "unreadable.txt"
# What the simulated client's ledger calls its data.
SIMULATED = "simulated"
_QUERY = "query.safetensors"
RESPONSE = "response.safetensors"
_INSTRUCTIONS = f"""
Waiting for the client. Carry this file to it:
  {{query}}
There, with its private data in DIR and its ledger in LEDGER:
  python -m ecos_jax.client.respond --query={_QUERY} --data={{data}} \\
    --epsilon=EPSILON --ledger=LEDGER --out={RESPONSE}
Bring the answer back as
  {{brought}}
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
      workdir.write_atomically(path / UNREADABLE, named)
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
  job.config.check_pool(job.stages["pool"].result["size"])


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


def codebook(job: Job) -> None:
  """Clusters the bank."""

  def work(path: Path) -> dict[str, Any]:
    fitted = codebook_lib.build(
      path,
      job.checked_bank(),
      job.config.codebook,
      job.key("codebook"),
      distributed.mesh(),
    )
    state = "converged" if fitted.converged else "not converged"
    return {
      "digest": codebook_lib.read(path).digest,
      "reseeded": fitted.reseeded,
      "count": job.feature_bank.shape[0],
      "text": f"{job.config.codebook.size} centroids, "
      f"{fitted.iterations} iterations, {state}",
    }

  job.stage("codebook", "codebook. seed", "bank", work, together=True)


def finished_codebook(job: Job) -> codebook_lib.Codebook:
  """Returns the finished codebook.

  Raises:
    EcosError: It is damaged.
  """
  stage = job.stages["codebook"]
  return codebook_lib.read(stage.path, stage.result["digest"])


def query(job: Job) -> None:
  """Writes what the client receives."""

  def work(path: Path) -> dict[str, Any]:
    query = query_lib.make(
      finished_codebook(job).centroids,
      job.encoder,
      terms(job),
    )
    data = query.to_bytes()
    workdir.write_atomically(path / _QUERY, data)
    return {
      "digest": query.digest,
      "bytes": len(data),
      "count": None,
      "text": f"{len(data):,} bytes down",
    }

  job.stage(
    "query",
    "privacy.sigma privacy.gamma privacy.delta privacy.relation",
    "codebook",
    work,
  )


def response(job: Job) -> bool:
  """Takes the client's answer, simulated or brought to the workdir.

  Returns:
    Whether it is there.
  """
  brought = job.work.path / RESPONSE
  remote = job.config.client.remote
  if remote and not distributed.first(
    lambda: brought.exists() or job.work.done("response")
  ):
    query = job.stages["query"].path / _QUERY
    data = "features:DIR" if job.config.of_features else "DIR"
    print(_INSTRUCTIONS.format(query=query, brought=brought, data=data))
    return False

  def work(path: Path) -> dict[str, Any]:
    query = message(job, "query", _QUERY, protocol.Query.from_bytes)
    data = (
      wire.read_file(brought) if remote else _simulated(job, query.to_bytes())
    )
    statement = query_lib.read(data, query).statement
    workdir.write_atomically(path / RESPONSE, data)
    privacy = f"epsilon {statement.epsilon:.4g}"
    if not statement.private:
      privacy = "NOT PRIVATE (noise from a seed)"
    return {
      "digest": workdir.digest(data),
      "bytes": len(data),
      "statement": dataclasses.asdict(statement),
      "count": None,
      "text": f"{len(data):,} bytes up, {privacy}",
    }

  job.stage("response", "privacy. client.remote", "query", work)
  return True


def _simulated(job: Job, query: bytes) -> bytes:
  """Returns the response of the simulated client."""
  mechanism = mechanisms.Mechanism(
    terms(job), job.config.privacy.insecure_noise_seed
  )
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


def terms(job: Job) -> protocol.Terms:
  """Returns the terms that the query proposes and the simulation takes.

  Raises:
    ProtocolError: One is out of range.
  """
  privacy = job.config.privacy
  return protocol.Terms(
    privacy.sigma, privacy.gamma, privacy.delta, privacy.relation.value
  )


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

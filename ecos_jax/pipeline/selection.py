"""From the pool to the proxy: pool, bank, codebook, query, response, proxy.

Each stage is a function that names what its result depends on and does its work
in a folder of the workdir. The client is simulated here unless it is remote;
between cloud and client pass the bytes of a query and of a response and nothing
else, and they are counted.
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import protocol
from ecos_jax import wire
from ecos_jax import workdir
from ecos_jax.client import respond
from ecos_jax.cloud import baselines
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import encode
from ecos_jax.cloud import query as query_lib
from ecos_jax.cloud import sampling
from ecos_jax.cloud import scores as scores_lib
from ecos_jax.data import loader
from ecos_jax.data import proxy as proxy_lib
from ecos_jax.pipeline.job import Job
from ecos_jax.privacy import mechanisms

Method = config_lib.Method

_Message = TypeVar("_Message")

NEEDS_BANK = (*config_lib.ASKING, Method.KCENTER, Method.MAK)
DATASET = "dataset"
INDEX = "index.npy"
UNREADABLE = "unreadable.txt"
_INDICES = "indices.npy"
# What the simulated client's ledger calls its data.
SIMULATED = "simulated"
_QUERY = "query.safetensors"
_RESPONSE = "response.safetensors"
_INSTRUCTIONS = f"""
Waiting for the client. Carry this file to it:
  {{query}}
There, with its private data in DIR and its ledger in LEDGER:
  python -m ecos_jax.client.respond --query={_QUERY} --data={{data}} \\
    --epsilon=EPSILON --ledger=LEDGER --out={_RESPONSE}
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
    kind = "features" if pool.feature_sources else "images"
    text = f"{len(pool):,} {kind} from {len(pool.sizes)} sources"
    if unreadable:
      lines = "".join(f"{line}\n" for line in unreadable)
      workdir.write_atomically(path / UNREADABLE, lines.encode())
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


def _codebook(job: Job) -> codebook_lib.Codebook:
  """Returns the finished codebook.

  Raises:
    EcosError: It is damaged.
  """
  stage = job.stages["codebook"]
  book = codebook_lib.read(stage.path)
  with workdir.redo_named(stage.path):
    if book.digest != stage.result["digest"] or not np.array_equal(
      np.bincount(book.assignment, minlength=len(book.sizes)), book.sizes
    ):
      raise errors.EcosError(f"the codebook in {stage.path} is damaged")
  return book


def query(job: Job) -> None:
  """Writes what the client receives."""

  def work(path: Path) -> dict[str, Any]:
    query = query_lib.make(
      _codebook(job).centroids,
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
  brought = job.work.path / _RESPONSE
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
    workdir.write_atomically(path / _RESPONSE, data)
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


def proxy(job: Job) -> None:
  """Chooses the samples and writes them as a TFDS dataset.

  Of a pool of features only the index is written.
  """

  def work(path: Path) -> dict[str, Any]:
    indices, clusters = _choose(job)
    pool = job.problem.pool
    np.save(path / _INDICES, indices)
    labels = pool.labels(indices)
    if job.config.train.task is config_lib.Task.CLIENT:
      labels = np.full(len(indices), -1, np.int64)
    if pool.feature_sources:
      weights = _weights(job, clusters)
      proxy_lib.write_index(path / INDEX, pool, indices, clusters, weights)
    else:
      proxy_lib.write(path / DATASET, pool, indices, clusters, labels)
    client = job.problem.client_source
    share = None
    if client is not None:
      share = float(np.mean(pool.source_of(indices) == client))
    budget = job.config.sampling.budget
    short = "" if len(indices) >= budget else f" of the {budget:,} asked for"
    return {
      "digest": _digest(indices),
      "size": len(indices),
      "client_share": share,
      "labelled": int((labels >= 0).sum()),
      "count": len(indices),
      "text": f"{len(indices):,} samples{short} by "
      f"{job.config.sampling.method.value}",
    }

  inputs = "pool"
  if job.config.sampling.method in NEEDS_BANK:
    inputs += " bank"
  if job.config.sampling.method in config_lib.ASKING:
    inputs += " codebook response"
  job.stage("proxy", "sampling. train.task seed", inputs, work)


def _choose(job: Job) -> tuple[np.ndarray, np.ndarray]:
  """Returns the chosen pool indices [B], and the cluster of each (or -1)."""
  options = job.config.sampling
  key = job.key("proxy")
  size = job.stages["pool"].result["size"]
  match options.method:
    case Method.ECOS | Method.ECOS_PAPER:
      return _decompress(job, key)
    case Method.KCENTER:
      bank = job.checked_bank(alone=True)
      indices = baselines.kcenter(bank, options.budget, key)
    case Method.MAK:
      features = respond.features(
        job.client,
        np.arange(len(job.client)),
        job.encoder,
        job.config.encoder.batch_size,
      )
      bank = job.checked_bank(alone=True)
      indices = baselines.mak(bank, features, options.budget, key)
    case Method.RANDOM:
      indices = baselines.random(size, options.budget, key)
    case Method.IDEAL:
      indices = _of_the_client(job)
      take = min(options.budget, len(indices))
      indices = indices[baselines.random(len(indices), take, key)]
    case _:
      indices = np.arange(size)
  return indices, np.full(len(indices), -1, np.int32)


def _of_the_client(job: Job) -> np.ndarray:
  """Returns the pool indices of the client's domain: known in simulation only.

  Raises:
    EcosError: None are.
  """
  pool, source = job.problem.pool, job.problem.client_source
  if source is None:
    raise errors.EcosError(
      "--config.sampling.method=ideal: no source of the pool is known to be of "
      "the client's domain"
    )
  return np.flatnonzero(pool.source_of(np.arange(len(pool))) == source)


def _decompress(job: Job, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
  options = job.config.sampling.resolved()
  book = _codebook(job)
  votes = _votes(job)
  density = scores_lib.density(votes, book.sizes)
  weights = votes * density**options.density_power
  indices = sampling.decompress(
    job.checked_bank(alone=True),
    book.assignment,
    book.centroids,
    density,
    sampling.quotas(weights, book.sizes, options.budget),
    options,
    key,
  )
  return indices, book.assignment[indices]


def _votes(job: Job) -> np.ndarray:
  """Returns how many votes each cluster is taken to have, float64 [R]."""
  response = message(job, "response", _RESPONSE, protocol.Response.from_bytes)
  return scores_lib.votes(
    response.scores,
    _codebook(job).sizes,
    response.statement.sigma,
    job.config.sampling.resolved(),
  )


def _weights(job: Job, clusters: np.ndarray) -> np.ndarray:
  """Returns for how much each chosen sample stands, float32 [B], 1 on average.

  The votes of a cluster, shared by the samples that were chosen from it.
  """
  if job.config.sampling.method not in config_lib.ASKING:
    return np.ones(len(clusters), np.float32)
  votes = _votes(job)
  shares = votes[clusters] / np.bincount(clusters)[clusters]
  return (shares / shares.mean()).astype(np.float32)


def chosen(job: Job) -> np.ndarray:
  """Returns the pool indices of the proxy, int64 [B].

  Raises:
    EcosError: They are damaged.
  """
  stage = job.stages["proxy"]
  indices = workdir.load_array(stage.path / _INDICES)
  with workdir.redo_named(stage.path):
    if _digest(indices) != stage.result["digest"]:
      raise errors.EcosError(f"{stage.path / _INDICES} is damaged")
  return indices


def _digest(indices: np.ndarray) -> str:
  return workdir.digest(np.sort(indices).astype("<i8").tobytes())


def selected(job: Job) -> loader.Source:
  """Returns the samples to train on: the proxy, or the client's own."""
  size = job.config.train.image_size
  if job.config.sampling.method is Method.LOCAL:
    client = job.client
    every = np.arange(len(client))
    return loader.Arrays(
      {
        "image": client.images(every, size),
        "label": client.labels(every),
      }
    )
  return dataset(job, "proxy")


def dataset(job: Job, stage: str) -> loader.Source:
  """Returns the samples of the dataset that a finished stage left.

  Raises:
    EcosError: It is damaged.
  """
  path = job.stages[stage].path
  with workdir.redo_named(path):
    return loader.proxy_source(path / DATASET, job.config.train.image_size)


def message(
  job: Job, stage: str, file: str, read: Callable[[bytes], _Message]
) -> _Message:
  """Returns the message that a finished stage left.

  Raises:
    EcosError: It is damaged.
  """
  finished = job.stages[stage]
  path = finished.path / file
  data = path.read_bytes()
  with workdir.redo_named(finished.path):
    if workdir.digest(data) != finished.result["digest"]:
      raise errors.EcosError(f"{path} is damaged")
  return read(data)

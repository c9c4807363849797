"""The stages in order: pool, bank, codebook, query, response, proxy, model.

Each stage is a method of `Job` that names what its result depends on and does
its work in a folder of the workdir (see `workdir.py`). The client is simulated
here unless it is remote; between cloud and client pass the bytes of a query and
of a response and nothing else, and they are counted.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any
import zlib

import jax
import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import protocol
from ecos_jax import summary as summary_lib
from ecos_jax import workdir as workdir_lib
from ecos_jax.client import respond
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import baselines
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import query as query_lib
from ecos_jax.cloud import sampling
from ecos_jax.data import digits
from ecos_jax.data import loader
from ecos_jax.data import proxy as proxy_lib
from ecos_jax.encoders import registry
from ecos_jax.privacy import accounting
from ecos_jax.privacy import mechanisms
from ecos_jax.training import loop
from ecos_jax.training import tasks

Method = config_lib.Method

_NEEDS_BANK = (Method.ECOS, Method.KCENTER, Method.MAK)
_QUERY = "query.safetensors"
_RESPONSE = "response.safetensors"
_DATASET = "dataset"
_CLASSES = 10


class Job:
  """One run: its configuration, its workdir and its finished stages."""

  def __init__(self, config: config_lib.Config, work: workdir_lib.Workdir):
    """Prepares a run; nothing is read or computed yet."""
    self.config = config
    self.work = work
    self.stages: dict[str, workdir_lib.Stage] = {}

  @functools.cached_property
  def benchmark(self) -> digits.Benchmark:
    """The data, made or read when a stage first needs them."""
    return digits.load(self.config.data, self.config.seed)

  @functools.cached_property
  def encoder(self) -> registry.Encoder:
    """The public feature extractor."""
    return registry.get(self.config.encoder.name)

  @functools.cached_property
  def feature_bank(self) -> bank_lib.FeatureBank:
    """The finished bank."""
    return bank_lib.FeatureBank.open(self.stages["bank"].path)

  def key(self, stage: str) -> jax.Array:
    """Returns the random key of a stage."""
    root = jax.random.key(self.config.seed)
    return jax.random.fold_in(root, zlib.crc32(stage.encode()))

  def _stage(self, name: str, fields: str, inputs: str, work, **options):
    """Runs or skips a stage and prints its line.

    Args:
      name: The stage.
      fields: Groups and fields of the configuration it depends on.
      inputs: Earlier stages it reads.
      work: As in `Workdir.stage`; its result has a `digest`, and for the line
        a `text` and a `count` (None where a rate makes no sense).
      **options: For `Workdir.stage`.
    """
    leaves = config_lib.flatten(self.config)
    groups = tuple(fields.split())
    stage = self.work.stage(
      name,
      {k: v for k, v in leaves.items() if k.startswith(groups)},
      {i: self.stages[i].result["digest"] for i in inputs.split()},
      work,
      **options,
    )
    self.stages[name] = stage
    seconds = "done before" if stage.skipped else f"{stage.seconds:9.1f} s"
    count = stage.result["count"]
    rate = (
      f"  {count / stage.seconds:,.0f}/s"
      if count and stage.seconds and not stage.skipped
      else ""
    )
    print(f"{name:<9} {stage.result['text']:<50} {seconds}{rate}", flush=True)

  def pool(self) -> None:
    """Reads or makes the public pool; what it holds is counted, not copied."""

    def work(path: Path) -> dict[str, Any]:
      del path
      pool = self.benchmark.pool
      client = self.benchmark.client_source
      share = None
      if client is not None and not self.config.client.remote:
        share = pool.sizes[client] / len(pool)
      return {
        "digest": pool.digest,
        "size": len(pool),
        "sizes": dict(zip(pool.source_names, pool.sizes, strict=True)),
        "client_share": share,
        "count": None,
        "text": f"{len(pool):,} images from {len(pool.sizes)} sources",
      }

    self._stage("pool", "data. seed", "", work)
    self.config.check_pool(self.stages["pool"].result["size"])

  def bank(self) -> None:
    """Encodes the pool."""

    def work(path: Path) -> dict[str, Any]:
      bank = bank_lib.build(
        path,
        self.benchmark.pool,
        self.encoder,
        dtype=self.config.bank.dtype.value,
        shard_rows=self.config.bank.shard_rows,
        batch_size=self.config.encoder.batch_size,
      )
      rows, dimension = bank.shape
      return {
        "digest": bank.digest,
        "count": rows,
        "text": f"{rows:,} x {dimension} features by {self.encoder.name}",
      }

    self._stage("bank", "encoder.name bank.", "pool", work, resumable=True)

  def codebook(self) -> None:
    """Clusters the bank."""

    def work(path: Path) -> dict[str, Any]:
      fitted = codebook_lib.build(
        path,
        self.feature_bank,
        self.config.codebook,
        self.key("codebook"),
        distributed.mesh(),
      )
      state = "converged" if fitted.converged else "not converged"
      return {
        "digest": codebook_lib.read(path).digest,
        "reseeded": fitted.reseeded,
        "count": self.feature_bank.shape[0],
        "text": f"{self.config.codebook.size} centroids, "
        f"{fitted.iterations} iterations, {state}",
      }

    self._stage("codebook", "codebook. seed", "bank", work)

  def query(self) -> None:
    """Writes what the client receives."""

    def work(path: Path) -> dict[str, Any]:
      query = query_lib.make(
        codebook_lib.read(self.stages["codebook"].path).centroids,
        self.encoder,
        self._terms(),
      )
      data = query.to_bytes()
      workdir_lib.write_atomically(path / _QUERY, data)
      return {
        "digest": query.digest,
        "bytes": len(data),
        "count": None,
        "text": f"{len(data):,} bytes down",
      }

    self._stage(
      "query",
      "privacy.sigma privacy.gamma privacy.delta privacy.relation",
      "codebook",
      work,
    )

  def response(self) -> bool:
    """Takes the client's answer, simulated or brought to the workdir.

    Returns:
      Whether it is there.
    """
    brought = self.work.path / _RESPONSE
    remote = self.config.client.remote
    if remote and not (brought.exists() or self.work.done("response")):
      query = self.stages["query"].path / _QUERY
      print(
        f"""
Waiting for the client. Carry this file to it:
  {query}
There, with its private images in DIR and its ledger in LEDGER:
  python -m ecos_jax.client.respond --query={_QUERY} --data=DIR \\
    --epsilon=EPSILON --ledger=LEDGER --out={_RESPONSE}
Bring the answer back as
  {brought}
and run this command again."""
      )
      return False

    def work(path: Path) -> dict[str, Any]:
      query_data = (self.stages["query"].path / _QUERY).read_bytes()
      data = brought.read_bytes() if remote else self._simulated(query_data)
      query = protocol.Query.from_bytes(query_data)
      statement = query_lib.read(data, query).statement
      workdir_lib.write_atomically(path / _RESPONSE, data)
      privacy = f"epsilon {statement.epsilon:.4g}"
      if not statement.private:
        privacy = "NOT PRIVATE (noise from a seed)"
      return {
        "digest": workdir_lib.digest(data),
        "bytes": len(data),
        "statement": dataclasses.asdict(statement),
        "count": None,
        "text": f"{len(data):,} bytes up, {privacy}",
      }

    self._stage("response", "privacy. client.remote", "query", work)
    return True

  def _simulated(self, query: bytes) -> bytes:
    """Returns the response of a client that holds the benchmark's half."""
    mechanism = mechanisms.Mechanism(
      self._terms(), self.config.privacy.insecure_noise_seed
    )
    return respond.respond(
      query,
      self.benchmark.client,
      mechanism,
      batch_size=self.config.encoder.batch_size,
    )

  def _terms(self) -> protocol.Terms:
    privacy = self.config.privacy
    return protocol.Terms(
      privacy.sigma, privacy.gamma, privacy.delta, privacy.relation.value
    )

  def proxy(self) -> None:
    """Chooses the samples and writes them as a TFDS dataset."""

    def work(path: Path) -> dict[str, Any]:
      indices, clusters = self._choose()
      pool = self.benchmark.pool
      np.save(path / "indices.npy", indices)
      proxy_lib.write(
        path / _DATASET, pool, indices, clusters, pool.labels(indices)
      )
      client = self.benchmark.client_source
      share = (
        None
        if client is None or self.config.client.remote
        else float(np.mean(pool.source_of(indices) == client))
      )
      budget = self.config.sampling.budget
      short = "" if len(indices) >= budget else f" of the {budget:,} asked for"
      return {
        "digest": workdir_lib.digest(np.sort(indices).astype("<i8").tobytes()),
        "size": len(indices),
        "client_share": share,
        "count": len(indices),
        "text": f"{len(indices):,} images{short} by "
        f"{self.config.sampling.method.value}",
      }

    inputs = "pool"
    if self.config.sampling.method in _NEEDS_BANK:
      inputs += " bank"
    if self.config.sampling.method is Method.ECOS:
      inputs += " codebook response"
    self._stage("proxy", "sampling. seed", inputs, work)

  def _choose(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the chosen pool indices [B], and the cluster of each (or -1)."""
    options = self.config.sampling
    key = self.key("proxy")
    size = self.stages["pool"].result["size"]
    match options.method:
      case Method.ECOS:
        return self._decompress(key)
      case Method.KCENTER:
        indices = baselines.kcenter(self.feature_bank, options.budget, key)
      case Method.MAK:
        client = self.benchmark.client
        features = registry.encode(
          self.encoder,
          client.images(np.arange(len(client)), self.encoder.image_size),
          self.config.encoder.batch_size,
        )
        indices = baselines.mak(
          self.feature_bank, features, options.budget, key
        )
      case Method.RANDOM:
        indices = baselines.random(size, options.budget, key)
      case _:
        indices = np.arange(size)
    return indices, np.full(len(indices), -1, np.int32)

  def _decompress(self, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    options = self.config.sampling
    data = (self.stages["response"].path / _RESPONSE).read_bytes()
    response = protocol.Response.from_bytes(data)
    book = codebook_lib.read(self.stages["codebook"].path)
    kept = sampling.keep(
      response.scores, response.statement.sigma, options.threshold
    )
    indices = sampling.decompress(
      self.feature_bank,
      book.assignment,
      book.centroids,
      sampling.quotas(response.scores, book.sizes, kept, options.budget),
      options.within,
      key,
    )
    return indices, book.assignment[indices]

  def model(self) -> None:
    """Trains on the proxy, and evaluates on the client's test images."""

    def work(path: Path) -> dict[str, Any]:
      test = None
      if not self.config.client.remote:
        images = self.benchmark.test
        every = np.arange(len(images))
        test = images.images(every, digits.SIZE), images.labels(every)
      result = loop.train(
        self._task(),
        self.config.train.model,
        self.config.train,
        seed=self.config.seed,
        directory=path,
        mesh=distributed.mesh(),
        test=test,
      )
      return {
        "digest": "",
        "accuracy": result.accuracy,
        "input_wait_share": result.input_wait_share,
        "images_per_second": result.images_per_second,
        "count": None,
        "text": f"{result.steps:,} steps of {self.config.train.model}, "
        f"accuracy {summary_lib.percent(result.accuracy)}",
      }

    inputs = "pool"
    if self.config.sampling.method is not Method.LOCAL:
      inputs += " proxy"
    fields = (
      "train.task train.model train.steps train.batch_size "
      "train.learning_rate train.weight_decay train.unlabelled_ratio "
      "train.confidence seed"
    )
    self._stage("model", fields, inputs, work, resumable=True)

  def _task(self) -> tasks.Task:
    train = self.config.train
    if self.config.sampling.method is Method.LOCAL:
      client = self.benchmark.client
      every = np.arange(len(client))
      labelled: loader.Source = loader.Arrays(
        {
          "image": client.images(every, digits.SIZE),
          "label": client.labels(every),
        }
      )
      chosen = np.zeros(0, np.int64)
    else:
      proxy = self.stages["proxy"].path
      labelled = loader.proxy_source(
        proxy_lib.open_proxy(proxy / _DATASET), digits.SIZE
      )
      chosen = np.load(proxy / "indices.npy")
    if not train.unlabelled_ratio:
      return tasks.Supervised(_CLASSES, labelled)
    pool = self.benchmark.pool
    rest = np.setdiff1d(np.arange(len(pool)), chosen)
    return tasks.FixMatch(
      _CLASSES,
      labelled,
      loader.PoolPart(pool, rest, digits.SIZE),
      train.unlabelled_ratio,
      train.confidence,
    )

  def summary(self) -> dict[str, Any]:
    """Returns what the run came to; the fields are named in `summary.py`."""
    results = {name: stage.result for name, stage in self.stages.items()}
    method = self.config.sampling.method
    proxy = results.get("proxy", {})
    statement = results.get("response", {}).get("statement")
    # Without an answer of the client, nothing of it is known.
    epsilon, delta, relation, paper = 0.0, 0.0, None, None
    if statement is not None:
      epsilon = statement["epsilon"] if statement["private"] else None
      delta, relation = statement["delta"], statement["relation"]
      paper = accounting.paper_epsilon(
        statement["sigma"], statement["gamma"], delta
      )
    elif method in (Method.MAK, Method.LOCAL):
      epsilon = delta = None
    return {
      "method": method.value,
      "client": self.config.data.client,
      "budget": self.config.sampling.budget,
      "seed": self.config.seed,
      "accuracy": results["model"]["accuracy"],
      "proxy_size": proxy.get("size"),
      "proxy_digest": proxy.get("digest"),
      "proxy_client_share": proxy.get("client_share"),
      "pool_client_share": results["pool"]["client_share"],
      "epsilon": epsilon,
      "paper_epsilon": paper,
      "delta": delta,
      "relation": relation,
      "bytes_down": results.get("query", {}).get("bytes", 0),
      "bytes_up": results.get("response", {}).get("bytes", 0),
      "seconds": {
        name: round(stage.seconds, 3) for name, stage in self.stages.items()
      },
    }


def run(config: config_lib.Config, workdir: Path) -> dict[str, Any] | None:
  """Runs the stages that are missing and returns the summary.

  Args:
    config: What to run.
    workdir: Where every artefact goes, or is already.

  Returns:
    The content of `summary.json`; None if the run waits for a remote client.

  Raises:
    EcosError: The configuration cannot run, or the workdir was made with
      another one.
  """
  config.validate()
  with workdir_lib.Workdir(workdir) as work:
    job = Job(config, work)
    resolved = work.path / "config.json"
    if not resolved.exists():
      workdir_lib.write_atomically(resolved, config.to_json().encode())
    job.pool()
    if config.sampling.method in _NEEDS_BANK:
      job.bank()
    if config.sampling.method is Method.ECOS:
      job.codebook()
      job.query()
      if not job.response():
        return None
    if config.sampling.method is not Method.LOCAL:
      job.proxy()
    job.model()
    summary = job.summary()
    workdir_lib.write_json(work.path / "summary.json", summary)
    workdir_lib.write_atomically(resolved, config.to_json().encode())
    if all(stage.skipped for stage in job.stages.values()):
      print("\nNothing to do: every stage was done before.")
    print("\n" + summary_lib.text(summary, work.path))
    return summary

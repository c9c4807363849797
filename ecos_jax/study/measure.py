"""Metrics that only a simulation can compute: they read the client's data.

NONE OF THEM IS PRIVATE: the distance between the proxy and the client's data,
its number of samples, its work, the accuracy of a linear classifier. A study
keeps these beside a trial's summary, never in a run or its workdir.
"""

from collections.abc import Callable, Collection
import functools
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import distance as distances

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import messages
from ecos_jax import workdir
from ecos_jax.data import clients
from ecos_jax.data import loader
from ecos_jax.data import pools
from ecos_jax.data import problem as problem_lib
from ecos_jax.encoders import encode
from ecos_jax.encoders import registry
from ecos_jax.models import delivery
from ecos_jax.pipeline import stages
from ecos_jax.training import evaluation

# The most samples of each side that the distance reads.
_SAMPLES = 2000
# A training step costs the forward pass, and twice that for the gradients.
_PASSES = 3
# The penalty of ridge regression on standardised features.
_RIDGE = 3000.0


def measure(
  config: config_lib.Config,
  path: Path,
  summary: dict[str, Any],
  wanted: Collection[str],
  problem: problem_lib.Problem,
) -> dict[str, Any]:
  """Returns the wanted metrics of a finished trial; None where one is absent.

  Args:
    config: The configuration of the trial.
    path: Its workdir.
    summary: What its run returned.
    wanted: Names of metrics; unknown ones are ignored. `distance`: see
      `squared_mmd`. `linear`: accuracy of `_linear`. `mean_client`,
      `worst_client`: accuracy on test samples with each client's classes and
      domains, of the model, or without one of `_linear`; of the clients whose
      answers made the proxy; `members`: how many these are. `grouping`: see
      `_grouping`. `upload`, `download`:
      bytes of the client's images and of the pool's as pixels, one byte a
      channel. `upload_files`, `download_files`: the same as PNG, or as the
      files that they are. `client_multiply_adds`: see `_client_work`.
    problem: The data of the trial.
  """
  client, size = problem.client, config.train.image_size
  if client is None:
    return {}

  @functools.cache
  def linear() -> np.ndarray | None:
    return of_proxy(_linear)

  def reduced(
    values: np.ndarray | None, by: Callable[[np.ndarray], Any]
  ) -> float | None:
    return None if values is None else float(by(values))

  @functools.cache
  def of_clients() -> np.ndarray | None:
    train = config.train.steps
    right = _of_model(config, path, problem) if train else linear()
    if right is None:
      return None
    return (clients.test_weights(problem) @ right)[_own(config, path)]

  def of_proxy(metric: Callable[..., Any]) -> Any:
    chosen = path / "proxy" / "indices.npy"
    if not chosen.exists():
      return None
    return metric(config, problem, workdir.load_array(chosen))

  known: dict[str, Callable[[], float | None]] = {
    "distance": lambda: of_proxy(_distance),
    "linear": lambda: reduced(linear(), np.mean),
    "mean_client": lambda: reduced(of_clients(), np.mean),
    "worst_client": lambda: reduced(of_clients(), np.min),
    "members": lambda: float(_own(config, path).sum()),
    "grouping": lambda: _grouping(config, path, problem),
    "upload": lambda: len(client) * size**2 * 3,
    "download": lambda: len(problem.pool) * size**2 * 3,
    "upload_files": lambda: _file_bytes(client),
    "download_files": lambda: _file_bytes(problem.pool),
    "client_multiply_adds": lambda: _client_work(
      config, path, summary, len(client)
    ),
  }
  return {name: known[name]() for name in known if name in wanted}


def _members(config: config_lib.Config, path: Path) -> np.ndarray:
  """Returns the group of each client, int64 [n]; all 0 without groups."""
  file = path / "groups" / "members.npy"
  if not file.exists():
    return np.zeros(config.data.clients, np.int64)
  return workdir.load_array(file)


def _own(config: config_lib.Config, path: Path) -> np.ndarray:
  """Returns whose answers made the proxy, bool [n]."""
  members = _members(config, path)
  return (members == config.sampling.group - 1) | (members.max() == 0)


def _grouping(
  config: config_lib.Config, path: Path, problem: problem_lib.Problem
) -> float | None:
  """Returns how well the groups are those of each client's main domain.

  It is the adjusted Rand index: 1 for the same groups, 0 for random ones.
  """
  # Imported here: optional, and slow.
  from sklearn import metrics

  members, owners = _members(config, path), problem.owners
  if owners is None or problem.domains is None:
    return None
  own = problem.domains[0]
  main = [np.bincount(own[owners == i]).argmax() for i in range(len(members))]
  return float(metrics.adjusted_rand_score(main, members))


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the squared maximum mean discrepancy of two samples, unbiased.

  Gretton et al. (JMLR 2012), equation 3, with the kernel exp(-|x - y|^2 /
  (2 h^2)); h is the median distance between two of `a`. It is 0 on average
  where both come from one distribution, so an estimate may be below 0.

  Args:
    a: [n, d], n > 1; in a study, the client's features.
    b: [m, d], m > 1; in a study, the proxy's features.
  """
  within_a = distances.pdist(a, "sqeuclidean")
  bandwidth = np.median(within_a)  # h^2

  def kernel(squared: np.ndarray) -> float:
    return float(np.exp(squared / (-2 * bandwidth)).mean())

  within_b = distances.pdist(b, "sqeuclidean")
  between = distances.cdist(a, b, "sqeuclidean")
  return kernel(within_a) + kernel(within_b) - 2 * kernel(between)


def _features(
  config: config_lib.Config,
  source: pools.Source | pools.Pool,
  indices: np.ndarray,
  encoder: registry.Encoder | None = None,
) -> np.ndarray:
  """Returns the features of some samples, float32 [n, d].

  Args:
    config: The trial's configuration.
    source: The samples, or features already.
    indices: int [n].
    encoder: Encodes images; None for the trial's encoder.
  """
  encoder = encoder or stages.encoder(config)
  return encode.of_rows(source, indices, encoder, config.encoder.batch_size)


def _distance(
  config: config_lib.Config, problem: problem_lib.Problem, indices: np.ndarray
) -> float:
  """Returns the distance between proxy and client, from samples of both."""
  rng = np.random.default_rng(0)
  client = problem.client
  assert client is not None
  own = rng.permutation(len(client))[:_SAMPLES]
  chosen = rng.permutation(indices)[:_SAMPLES]
  proxy = _features(config, problem.pool, chosen)
  return squared_mmd(_features(config, client, own), proxy)


def _of_model(
  config: config_lib.Config, path: Path, problem: problem_lib.Problem
) -> np.ndarray | None:
  """Returns for which test samples the trained model is right, bool [m]."""
  if problem.test is None:
    return None
  data = (path / "model" / delivery.FILE).read_bytes()
  model = delivery.unpack(messages.Model.from_bytes(data))
  every = np.arange(len(problem.test))
  images = problem.test.images(every, config.train.image_size)
  source = loader.Arrays({"image": images})
  logits = evaluation.logits(model, source, distributed.mesh())
  return logits.argmax(axis=1) == problem.test.labels(every)


def _linear(
  config: config_lib.Config, problem: problem_lib.Problem, indices: np.ndarray
) -> np.ndarray | None:
  """Returns for which test samples a linear classifier is right, bool [m].

  It is fitted to the proxy: ridge regression on features, divided by their norm
  and standardised: those of `train.model` if its weights are published, else
  those of the encoder. All of the proxy has its true label.
  """
  # Imported here: optional, and slow.
  from sklearn import linear_model
  from sklearn import pipeline
  from sklearn import preprocessing

  test, train = problem.test, config.train
  if test is None:
    return None
  encoder = None
  if train.model in registry.PRETRAINED:
    encoder = registry.get(
      train.model, image_size=train.image_size, weights=train.weights
    )
  model = pipeline.make_pipeline(
    preprocessing.Normalizer(),
    preprocessing.StandardScaler(),
    linear_model.RidgeClassifier(_RIDGE),
  )
  chosen = _features(config, problem.pool, indices, encoder)
  model.fit(chosen, problem.pool.labels(indices))
  every = np.arange(len(test))
  features = _features(config, test, every, encoder)
  return np.asarray(model.predict(features) == test.labels(every))


def _file_bytes(images: pools.Source | pools.Pool) -> int:
  return sum(len(images.encoded(i)) for i in range(len(images)))


def _client_work(
  config: config_lib.Config, path: Path, summary: dict[str, Any], n: int
) -> float | None:
  """Returns the multiply-adds of the client: its votes, or its own training.

  A vote compares a sample with R centroids or directions of d numbers, R d
  multiply-adds; the encoder is not counted, since it does not depend on R.
  Local training costs three forward passes per image and step.
  """
  train = config.train
  if config.sampling.method is config_lib.Method.LOCAL:
    model = summary["model"]
    return model and (
      _PASSES * train.steps * train.batch_size * model["multiply_adds"]
    )
  files = sorted(path.glob("*query/*.safetensors"))
  if not files:
    return None
  queries = [messages.Query.from_bytes(file.read_bytes()) for file in files]
  arrays = [a for q in queries for a in (q.centroids, q.directions)]
  return float(n * sum(array.size for array in arrays if array is not None))

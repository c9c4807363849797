"""What only a simulation can know of a trial, since it reads the client's data.

NOT PRIVATE, none of it: the distance between the proxy and the client's data,
the size of the client's data, the work of the client. A study keeps these
beside a trial's summary; none of them goes back into a run, or into the cloud's
workdir.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import distance as distances

from ecos_jax import config as config_lib
from ecos_jax import messages
from ecos_jax import workdir
from ecos_jax.data import pools
from ecos_jax.data import problem as problem_lib
from ecos_jax.encoders import encode
from ecos_jax.encoders import registry
from ecos_jax.pipeline import stages

# The distance looks at so many samples of each side.
_SAMPLES = 2000
# A training step costs the forward pass, and twice that for the gradients.
_PASSES = 3


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
      `squared_mmd`. `upload`, `download`: bytes of the client's images and of
      the pool's as pixels, one byte a channel. `upload_files`,
      `download_files`: the same as PNG, or as the files that they are.
      `client_multiply_adds`: see `_client_work`.
    problem: The data of the trial.
  """
  client, size = problem.client, config.train.image_size
  if client is None:
    return {}
  known: dict[str, Callable[[], float | None]] = {
    "distance": lambda: _distance(config, path, problem.pool, client),
    "upload": lambda: len(client) * size**2 * 3,
    "download": lambda: len(problem.pool) * size**2 * 3,
    "upload_files": lambda: _file_bytes(client),
    "download_files": lambda: _file_bytes(problem.pool),
    "client_multiply_adds": lambda: _client_work(
      config, path, summary, len(client)
    ),
  }
  return {name: known[name]() for name in known if name in wanted}


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


def _distance(
  config: config_lib.Config,
  path: Path,
  pool: pools.Pool,
  client: pools.Source,
) -> float | None:
  """Returns the distance between proxy and client, from samples of both."""
  file = path / "proxy" / "indices.npy"
  if not file.exists():
    return None
  rng = np.random.default_rng(0)
  own = rng.permutation(np.arange(len(client)))[:_SAMPLES]
  indices = rng.permutation(workdir.load_array(file))[:_SAMPLES]
  encoder = stages.encoder(config)
  batch_size = config.encoder.batch_size
  if pool.feature_sources:
    chosen = np.concatenate(
      [
        encode.of_rows(source, local, None, batch_size)
        for source, _, local in pool.by_source(indices)
      ]
    )
  else:
    images = pool.images(indices, encoder.image_size)
    chosen = registry.encode(encoder, images, batch_size)
  return squared_mmd(encode.of_rows(client, own, encoder, batch_size), chosen)


def _file_bytes(images: pools.Source | pools.Pool) -> int:
  return sum(len(images.encoded(i)) for i in range(len(images)))


def _client_work(
  config: config_lib.Config, path: Path, summary: dict[str, Any], n: int
) -> float | None:
  """Returns the multiply-adds of the client: its votes, or its own training.

  A vote compares a sample with R centroids of d numbers, R d multiply-adds; the
  encoder is not counted, since it does not depend on R. Local training costs
  three forward passes per image and step.
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
  return float(n * sum(query.centroids.size for query in queries))

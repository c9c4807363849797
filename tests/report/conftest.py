"""Runs to report on: real ones, on a pool whose names mean harm."""

import numpy as np
import pytest

from ecos_jax import config as config_lib
from ecos_jax import pipeline

HOSTILE = "<script>alert('x')<!--&amp;"


def _digits(path, level, samples, seed):
  rng = np.random.default_rng(seed)
  images = level + rng.integers(0, 90, (samples, 28, 28))
  np.savez(
    path,
    images=images.astype(np.uint8),
    labels=rng.integers(0, 3, samples),
  )
  return f"images:{path}"


@pytest.fixture(scope="session")
def configure(tmp_path_factory):
  """Returns a function to a fresh configuration on one pool."""
  path = tmp_path_factory.mktemp("data")
  sources = (
    _digits(path / f"{HOSTILE}.npz", 10, 70, 1),
    _digits(path / "plain.npz", 120, 50, 2),
  )
  # Of one name with a source: that is the client's domain.
  (path / "private").mkdir()
  client = _digits(path / "private" / "plain.npz", 120, 60, 3)
  test = _digits(path / "test.npz", 120, 40, 4)

  def new() -> config_lib.Config:
    config = config_lib.Config()
    config.data.sources = sources
    config.data.client_data, config.data.test_data = client, test
    config.codebook.size = 8
    config.privacy.sigma = 2.0
    config.sampling.budget = 24
    config.train.steps, config.train.batch_size = 2, 8
    config.train.log_every = 1
    # The smallest, which compile in the least time.
    config.train.model, config.distill.teacher = "convnet_small", "convnet"
    return config

  return new


@pytest.fixture(scope="session")
def ecos(configure, tmp_path_factory):
  """Returns the workdir of a run with a query."""
  path = tmp_path_factory.mktemp("runs") / "ecos"
  pipeline.run(configure(), path)
  return path


@pytest.fixture(scope="session")
def random(configure, ecos):
  """Returns the workdir of a run without one, beside it."""
  config = configure()
  config.sampling.method = config_lib.Method.RANDOM
  path = ecos.parent / HOSTILE
  pipeline.run(config, path)
  return path

import itertools
import math

import numpy as np
import pytest

from configs import digits_manual
from ecos_jax import config as config_lib
from ecos_jax import messages
from ecos_jax.cloud import codebook
from ecos_jax.cloud import question
from ecos_jax.data import problem as problem_lib
from ecos_jax.encoders import encode
from ecos_jax.encoders import registry
from ecos_jax.pipeline import stages
from ecos_jax.study import measure


def _slow_squared_mmd(a, b) -> float:
  """The definition, one pair after the other."""

  def squared(x, y):
    return sum((i - j) ** 2 for i, j in zip(x, y, strict=True))

  pairs = list(itertools.combinations(a, 2))
  bandwidth = np.median([squared(x, y) for x, y in pairs])

  def kernel(x, y):
    return math.exp(-squared(x, y) / (2 * bandwidth))

  within_a = sum(kernel(x, y) for x, y in pairs) / len(pairs)
  pairs = list(itertools.combinations(b, 2))
  within_b = sum(kernel(x, y) for x, y in pairs) / len(pairs)
  between = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
  return within_a + within_b - 2 * between


def test_the_distance_is_its_definition():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 1
  assert measure.squared_mmd(a, b) == pytest.approx(_slow_squared_mmd(a, b))


def test_the_distance_is_0_on_average_within_a_distribution():
  rng = np.random.default_rng(0)
  same = [
    measure.squared_mmd(rng.normal(size=(40, 2)), rng.normal(size=(30, 2)))
    for _ in range(200)
  ]
  assert abs(np.mean(same)) < 3 * np.std(same) / 200**0.5
  other = rng.normal(size=(30, 2)) + 2
  assert measure.squared_mmd(rng.normal(size=(40, 2)), other) > 0.3


@pytest.fixture(scope="module")
def problem():
  config = digits_manual.get_config("smoke")
  return config, problem_lib.load(config.data, config.seed)


def test_the_client_own_domain_is_nearer_than_the_pool(problem, tmp_path):
  config, loaded = problem
  pool = loaded.pool
  every = np.arange(len(pool))
  own = np.flatnonzero(pool.source_of(every) == loaded.client_source)
  (tmp_path / "proxy").mkdir()
  found = []
  for indices in (own, every):
    np.save(tmp_path / "proxy" / "indices.npy", indices)
    found.append(measure.measure(config, tmp_path, {}, {"distance"}, loaded))
  assert abs(found[0]["distance"]) < 0.01 < found[1]["distance"]


def test_the_linear_classifier_is_ridge_regression(problem, tmp_path):
  config, loaded = problem
  (tmp_path / "proxy").mkdir()
  chosen = np.arange(0, len(loaded.pool), 7)
  np.save(tmp_path / "proxy" / "indices.npy", chosen)
  found = measure.measure(config, tmp_path, {}, {"linear"}, loaded)

  def features(source, rows):
    encoded = encode.of_rows(source, rows, stages.encoder(config), 256)
    return encoded / np.linalg.norm(encoded, axis=1, keepdims=True)

  # Least squares on the classes' indicators, with a penalty on the weights.
  x, every = features(loaded.pool, chosen), np.arange(len(loaded.test))
  mean, scale = x.mean(axis=0), x.std(axis=0)
  scale[scale == 0] = 1
  x, test = (x - mean) / scale, (features(loaded.test, every) - mean) / scale
  y = 2.0 * (loaded.pool.labels(chosen)[:, None] == np.arange(10)) - 1
  gram = x.T @ x + 3000 * np.eye(x.shape[1])
  scores = test @ np.linalg.solve(gram, x.T @ (y - y.mean(axis=0)))
  right = (scores + y.mean(axis=0)).argmax(axis=1) == loaded.test.labels(every)
  assert found["linear"] == pytest.approx(right.mean(), abs=0.01)
  assert found["linear"] > 0.3


def test_bytes_are_counted_and_nothing_that_nobody_asks_for(problem, tmp_path):
  config, loaded = problem
  wanted = {"upload", "download", "upload_files", "accuracy"}
  found = measure.measure(config, tmp_path, {}, wanted, loaded)
  files = [loaded.client.encoded(i) for i in range(len(loaded.client))]
  assert found == {
    "upload": len(loaded.client) * 28 * 28 * 3,
    "download": len(loaded.pool) * 28 * 28 * 3,
    "upload_files": sum(map(len, files)),
  }


def test_the_work_of_the_client(problem, tmp_path):
  config, loaded = problem
  wanted = {"client_multiply_adds"}
  assert measure.measure(config, tmp_path, {}, wanted, loaded) == {
    "client_multiply_adds": None
  }
  message = question.make(
    codebook.Codebook(np.zeros((6, 72), np.float32), np.zeros(6), np.zeros(9)),
    registry.get("hog"),
    messages.Terms(10.0, 0.8, 1e-5, "add_remove"),
    config_lib.Codebook(),
  )
  (tmp_path / "query").mkdir()
  (tmp_path / "query/query.safetensors").write_bytes(message.to_bytes())
  found = measure.measure(config, tmp_path, {}, wanted, loaded)
  assert found["client_multiply_adds"] == len(loaded.client) * 6 * 72
  local = digits_manual.get_config("smoke")
  local.sampling.method = config_lib.Method.LOCAL
  summary = {"model": {"multiply_adds": 1000}}
  found = measure.measure(local, tmp_path, summary, wanted, loaded)
  # Forward, and twice that back, for 20 steps of 16 images.
  assert found["client_multiply_adds"] == 3 * 20 * 16 * 1000

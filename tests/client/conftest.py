import numpy as np
import pytest

from ecos_jax.client import private_knn
from tests.client.label_requests import request_for


@pytest.fixture(name="samples", scope="module")
def _samples():
  random = np.random.default_rng(0)
  labels = random.integers(0, 3, 240)
  features = random.normal(size=(240, 5)) + 1.5 * np.eye(3, 5)[labels]
  return private_knn.Samples(features.astype(np.float32), labels)


@pytest.fixture(name="request_", scope="module")
def _request_of_60():
  random = np.random.default_rng(1)
  return request_for(random.normal(size=(60, 5)) + 0.7)

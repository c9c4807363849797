import subprocess
import sys

import numpy as np
import pytest

from ecos_jax.client import private_knn
from ecos_jax.encoders import registry
from tests.client.label_requests import request_for

# Imported by the training of the cloud; a client has no use for them.
_CLOUD_ONLY = (
  "orbax",
  "grain",
  "tensorstore",
  "flax",
  "optax",
  "tensorflow_datasets",
  "tensorflow",
  "torch",
  "matplotlib",
  "sklearn",
  "pandas",
)


@pytest.fixture(name="samples", scope="session")
def _samples():
  random = np.random.default_rng(0)
  labels = random.integers(0, 3, 240)
  features = random.normal(size=(240, 5)) + 1.5 * np.eye(3, 5)[labels]
  return private_knn.Samples(features.astype(np.float32), labels)


@pytest.fixture(name="request_", scope="session")
def _request_of_60():
  random = np.random.default_rng(1)
  return request_for(random.normal(size=(60, 5)) + 0.7)


@pytest.fixture(name="images", scope="session")
def _images():
  random = np.random.default_rng(0)
  return random.integers(0, 256, (37, 28, 28, 3), dtype=np.uint8)


@pytest.fixture(name="features", scope="session")
def _features(images):
  return registry.encode(registry.get("hog"), images)


@pytest.fixture(name="run_alone", scope="session")
def _run_alone():
  """Runs a command of the client in a process of its own.

  The last line that it prints names what it loaded and has no use for.
  """

  def run(module, *arguments):
    script = (
      "import runpy, sys\n"
      "try:\n"
      f"  runpy.run_module({module!r}, run_name='__main__')\n"
      "except SystemExit as end:\n"
      "  assert not end.code, end.code\n"
      f"print([name for name in {_CLOUD_ONLY} if name in sys.modules])\n"
    )
    return subprocess.run(
      [sys.executable, "-c", script, *arguments],
      capture_output=True,
      text=True,
      check=True,
      stdin=subprocess.DEVNULL,
    )

  return run

"""The example of an own task in the README, as it stands there."""

import functools
import json
from pathlib import Path
import re
from unittest import mock

import numpy as np
import pytest

from ecos_jax import config as config_lib
from ecos_jax.data import pools
from ecos_jax.data import proxy
from ecos_jax.training import metrics

_README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def example():
  blocks = re.findall(r"```python\n(.*?)```", _README.read_text(), re.DOTALL)
  [block] = [block for block in blocks if "loop.train" in block]
  return block


def test_the_example_trains_on_a_proxy(example, tmp_path, monkeypatch):
  # What a finished run leaves, and few steps.
  monkeypatch.chdir(tmp_path)
  run = tmp_path / "runs" / "usps"
  images = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 3), np.uint8)
  pool = pools.Pool([pools.ArraySource("a", images, np.arange(20) % 10)])
  indices = np.arange(0, 20, 2)
  run.joinpath("proxy").mkdir(parents=True)
  proxy.write(
    run / "proxy" / "dataset",
    pool,
    indices,
    np.full(len(indices), -1, np.int32),
    pool.labels(indices),
  )
  few = functools.partial(config_lib.Train, steps=3, batch_size=8, log_every=1)
  with mock.patch.object(config_lib, "Train", few):
    names: dict = {}
    exec(example, names)
  assert names["result"].steps == 3
  [file] = run.glob(f"*/{metrics.FILE}")
  losses = [json.loads(line)["loss"] for line in file.read_text().splitlines()]
  assert len(losses) == 3 and np.isfinite(losses).all()

"""The example of an own task in docs/own_data.md, as it stands there."""

import functools
import json
from pathlib import Path
import re
from unittest import mock

import numpy as np
import pytest

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.data import pools
from ecos_jax.data import proxy
from ecos_jax.training import metrics

_PAGE = Path(__file__).parents[2] / "docs/own_data.md"


@pytest.fixture
def example():
  blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
  [block] = [block for block in blocks if "loop.train" in block]
  return block


def _run(example, tmp_path, monkeypatch, labels):
  """Runs it on what a finished run leaves, for few steps."""
  monkeypatch.chdir(tmp_path)
  images = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 3), np.uint8)
  pool = pools.Pool([pools.ArraySource("a", images)])
  indices = np.arange(0, 20, 2)
  directory = tmp_path / "runs" / "optdigits" / "proxy" / "dataset"
  proxy.write(directory, pool, indices, np.full(10, -1, np.int32), labels)
  few = functools.partial(config_lib.Train, steps=3, batch_size=8, log_every=1)
  names: dict = {}
  with mock.patch.object(config_lib, "Train", few):
    exec(example, names)
  return names["result"]


def test_the_example_trains_on_a_proxy(example, tmp_path, monkeypatch):
  result = _run(example, tmp_path, monkeypatch, np.arange(10))
  assert result.steps == 3
  [file] = (tmp_path / "runs").glob(f"*/{metrics.FILE}")
  losses = [json.loads(line)["loss"] for line in file.read_text().splitlines()]
  assert len(losses) == 3 and np.isfinite(losses).all()


def test_the_proxy_of_a_client_labelling_run_is_refused(
  example, tmp_path, monkeypatch
):
  with pytest.raises(errors.EcosError, match="none of the labelled images"):
    _run(example, tmp_path, monkeypatch, np.full(10, -1))


def test_the_class_and_its_call_are_short(example):
  lines = [line for line in example.splitlines() if line.strip()]
  own = [line for line in lines if not line.startswith(("import", "from"))]
  assert len(own) <= 10

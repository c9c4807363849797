import functools
import json
from pathlib import Path

import numpy as np
import pytest

from configs import digits_manual
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import pipeline
from ecos_jax.study import store

_SHARED = ("pool", "bank", "codebook", "query")


def _config(budget: int) -> config_lib.Config:
  config = digits_manual.get_config("smoke")
  config.privacy.insecure_noise_seed = 7
  config.sampling.budget = budget
  config.train.steps = 2
  return config


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
  folder = tmp_path_factory.mktemp("store")
  enter = functools.partial(store.SharingWorkdir, store=folder / "stages")
  load = store.remembering()
  for budget in (32, 64):
    path = folder / str(budget)
    pipeline.run(_config(budget), path, enter=enter, load=load)
  return folder


def _stage(path: Path) -> dict:
  return json.loads((path / "manifest.json").read_bytes())


@pytest.mark.slow
def test_the_second_cell_has_the_very_stages_of_the_first(cells):
  for name in _SHARED:
    first, second = (cells / b / name / "manifest.json" for b in ("32", "64"))
    assert first.samefile(second), name
  for name in ("response", "proxy", "model"):
    first, second = (cells / b / name / "manifest.json" for b in ("32", "64"))
    assert not first.samefile(second), name


@pytest.mark.slow
def test_a_cell_ends_as_a_run_alone(cells, tmp_path):
  pipeline.run(_config(64), tmp_path / "alone")
  cell, alone = cells / "64", tmp_path / "alone"
  np.testing.assert_array_equal(
    *(np.load(path / "proxy/indices.npy") for path in (cell, alone))
  )
  for name in (*_SHARED, "response", "proxy", "model"):
    one, other = _stage(cell / name), _stage(alone / name)
    assert one["identity"] == other["identity"]
    if name != "model":  # whose result has speeds
      assert one["result"] == other["result"]
  files = ("model/metrics.jsonl", "codebook/centroids.npy")
  for file in files:
    assert (cell / file).read_bytes() == (alone / file).read_bytes()


@pytest.mark.slow
def test_a_stage_of_something_else_is_not_taken(cells, tmp_path):
  enter = functools.partial(store.SharingWorkdir, store=cells / "stages")
  other = _config(32)
  other.codebook.size = 10
  pipeline.run(other, tmp_path / "other", enter=enter)
  own = tmp_path / "other"
  assert _stage(own / "codebook")["identity"]["config"]["codebook.size"] == 10
  assert (own / "bank/manifest.json").samefile(cells / "32/bank/manifest.json")


def test_a_stage_that_claims_another_identity_is_refused(tmp_path):
  with store.SharingWorkdir(tmp_path / "a", tmp_path / "stages") as work:
    work.stage("pool", {"seed": 1}, {}, lambda path: {"digest": "x"})
  [kept] = [p for p in (tmp_path / "stages").iterdir() if p.is_dir()]
  manifest = _stage(kept)
  manifest["identity"]["config"]["seed"] = 2
  (kept / "manifest.json").unlink()
  (kept / "manifest.json").write_text(json.dumps(manifest))
  with (
    store.SharingWorkdir(tmp_path / "b", tmp_path / "stages") as work,
    pytest.raises(errors.EcosError, match="seed` was 2, now is 1"),
  ):
    work.stage("pool", {"seed": 1}, {}, lambda path: {"digest": "x"})


def test_what_a_killed_cell_left_is_replaced(tmp_path):
  """A stage begun here, and meanwhile finished by another cell."""
  stages = tmp_path / "stages"
  (tmp_path / "b/bank").mkdir(parents=True)
  (tmp_path / "b/bank/started.json").write_text("{}")
  (tmp_path / "b/.bank.tmp").mkdir()

  def work(path: Path) -> dict:
    (path / "rows").write_text("finished")
    return {"digest": "x"}

  for name in ("a", "b"):
    with store.SharingWorkdir(tmp_path / name, stages) as workdir:
      stage = workdir.stage("bank", {}, {}, work)
  assert stage.skipped
  assert (tmp_path / "b/bank/rows").samefile(tmp_path / "a/bank/rows")


def test_few_pools_are_kept_in_memory(monkeypatch):
  loaded = []
  monkeypatch.setattr(
    store.problem, "load", lambda data, seed: loaded.append(seed) or seed
  )
  load = store.remembering()
  data = config_lib.Data()
  for seed in (1, 1, 2, 1, 2, 3, 3, 1):
    assert load(data, seed) == seed
  assert loaded == [1, 2, 3, 1]

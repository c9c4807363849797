import functools
import json
from pathlib import Path

import numpy as np
import pytest

from configs import digits_manual
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import pipeline
from ecos_jax.study import trial

_SHARED = ("pool", "bank", "codebook", "query")


def _config(budget: int) -> config_lib.Config:
  config = digits_manual.get_config("smoke")
  config.privacy.insecure_noise_seed = 7
  config.sampling.budget = budget
  config.train.steps = 2
  return config


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
  folder = tmp_path_factory.mktemp("store")
  enter = functools.partial(trial.SharingWorkdir, store=folder / "stages")
  load = trial.remembering()
  for budget in (32, 64):
    path = folder / str(budget)
    pipeline.run(_config(budget), path, enter=enter, load=load)
  return folder


def _stage(path: Path) -> dict:
  return json.loads((path / "manifest.json").read_bytes())


@pytest.mark.slow
def test_the_second_trial_has_the_very_stages_of_the_first(trials):
  for name in _SHARED:
    first, second = (trials / b / name / "manifest.json" for b in ("32", "64"))
    assert first.samefile(second), name
  for name in ("response", "proxy", "model"):
    first, second = (trials / b / name / "manifest.json" for b in ("32", "64"))
    assert not first.samefile(second), name


@pytest.mark.slow
def test_a_trial_ends_as_a_run_alone(trials, tmp_path):
  pipeline.run(_config(64), tmp_path / "alone")
  one, alone = trials / "64", tmp_path / "alone"
  np.testing.assert_array_equal(
    *(np.load(path / "proxy/indices.npy") for path in (one, alone))
  )
  for name in (*_SHARED, "response", "proxy", "model"):
    own, other = _stage(one / name), _stage(alone / name)
    assert own["identity"] == other["identity"]
    if name != "model":  # whose result has speeds
      assert own["result"] == other["result"]
  files = ("model/metrics.jsonl", "codebook/centroids.npy")
  for file in files:
    assert (one / file).read_bytes() == (alone / file).read_bytes()


@pytest.mark.slow
def test_a_stage_of_something_else_is_not_taken(trials, tmp_path):
  enter = functools.partial(trial.SharingWorkdir, store=trials / "stages")
  other = _config(32)
  other.codebook.size = 10
  pipeline.run(other, tmp_path / "other", enter=enter)
  own = tmp_path / "other"
  assert _stage(own / "codebook")["identity"]["config"]["codebook.size"] == 10
  assert (own / "bank/manifest.json").samefile(trials / "32/bank/manifest.json")


def test_a_stage_that_claims_another_identity_is_refused(tmp_path):
  with trial.SharingWorkdir(tmp_path / "a", tmp_path / "stages") as work:
    work.stage("pool", {"seed": 1}, {}, lambda path: {"digest": "x"})
  [kept] = [p for p in (tmp_path / "stages").iterdir() if p.is_dir()]
  manifest = _stage(kept)
  manifest["identity"]["config"]["seed"] = 2
  (kept / "manifest.json").unlink()
  (kept / "manifest.json").write_text(json.dumps(manifest))
  with (
    trial.SharingWorkdir(tmp_path / "b", tmp_path / "stages") as work,
    pytest.raises(errors.EcosError, match="seed` was 2, now is 1"),
  ):
    work.stage("pool", {"seed": 1}, {}, lambda path: {"digest": "x"})


def test_what_a_killed_trial_left_is_replaced(tmp_path):
  """A stage begun here, and meanwhile finished by another trial."""
  stages = tmp_path / "stages"
  (tmp_path / "b/bank").mkdir(parents=True)
  (tmp_path / "b/bank/started.json").write_text("{}")
  (tmp_path / "b/.bank.tmp").mkdir()

  def work(path: Path) -> dict:
    (path / "rows").write_text("finished")
    return {"digest": "x"}

  for name in ("a", "b"):
    with trial.SharingWorkdir(tmp_path / name, stages) as workdir:
      stage = workdir.stage("bank", {}, {}, work)
  assert stage.skipped
  assert (tmp_path / "b/bank/rows").samefile(tmp_path / "a/bank/rows")


def test_few_pools_are_kept_in_memory(monkeypatch):
  loaded = []
  monkeypatch.setattr(
    trial.problem, "load", lambda data, seed: loaded.append(seed) or seed
  )
  load = trial.remembering()
  data = config_lib.Data()
  for seed in (1, 1, 2, 1, 2, 3, 3, 1):
    assert load(data, seed) == seed
  assert loaded == [1, 2, 3, 1]

from pathlib import Path
import re
import shlex

import pytest

from configs import digits_manual
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.study import plan

_BASE = f"{Path(__file__).parents[2] / 'configs/digits_manual.py'}:smoke"


def _study(*grids, **fields) -> plan.Study:
  return plan.of(_BASE, grids=grids, **fields)


def test_trials_are_all_combinations_of_every_grid():
  study = _study(
    {"sampling.method": ("ecos", "random"), "seed": (1, 2)},
    {"sampling.method": ("local",), "privacy.sigma": (1, 2)},
  )
  assert {trial.name for trial in study.trials()} == {
    "method=ecos,seed=1",
    "method=ecos,seed=2",
    "method=random,seed=1",
    "method=random,seed=2",
    "method=local,sigma=1",
    "method=local,sigma=2",
  }
  [trial] = [t for t in study.trials() if t.name == "method=random,seed=2"]
  expected = digits_manual.get_config("smoke")
  expected.sampling.method = config_lib.Method.RANDOM
  expected.seed = expected.privacy.insecure_noise_seed = 2
  assert trial.config == expected


def test_trials_with_the_same_data_lie_together():
  study = _study({"sampling.budget": (8, 16), "seed": (1, 2)})
  assert [t.config.seed for t in study.trials()] == [1, 1, 2, 2]


def test_the_noise_comes_from_the_seed():
  study = _study({"seed": (1, 7)})
  seeds = [t.config.privacy.insecure_noise_seed for t in study.trials()]
  assert seeds == [1, 7]


def test_an_override_of_the_study_reaches_its_trials():
  study = _study({"seed": (1,)})
  study.train.steps = 3
  [trial] = study.trials()
  assert trial.config.train.steps == 3
  assert type(trial.config) is config_lib.Config


def test_an_override_without_effect_is_refused():
  study = _study({"seed": (1,)})
  study.validate()
  study.seed = study.privacy.insecure_noise_seed = 5
  with pytest.raises(errors.ConfigError) as error:
    study.validate()
  assert "`seed`=5: the study sets it" in str(error.value)
  assert "insecure_noise_seed`=5: the study sets it" in str(error.value)


def test_all_errors_come_at_once():
  study = _study(
    {"sampling.method": ("ecos", "best"), "sampling.bugdet": (1,)},
    {"seed": (1,), "sampling.budget": ("many",)},
  )
  with pytest.raises(errors.ConfigError) as error:
    study.validate()
  best = "'best': it must be one of ecos, ecos_paper, random"
  assert best in str(error.value)
  assert "no field sampling.bugdet; valid: sampling.method" in str(error.value)
  assert "`sampling.budget` cannot be 'many'" in str(error.value)


def test_every_trial_and_every_table_is_checked():
  study = _study(
    {"sampling.budget": (0, 8), "privacy.gamma": (2.0,), "seed": (1,)},
    tables=(plan.Table("t", rows=("data.client",), metrics=("speed",)),),
    plots=(plan.Plot("p", x="seed", y="accuracy", lines="sampling.budget"),),
  )
  with pytest.raises(errors.ConfigError) as error:
    study.validate()
  told = str(error.value)
  both = "budget=0,gamma=2.0,seed=1: `privacy.gamma` .*; `sampling.budget` must"
  assert re.search(both, told)
  assert "budget=8,gamma=2.0,seed=1: `privacy.gamma`" in told
  assert "table 't': there is no metric speed" in told
  assert "table 't': no grid varies data.client" in told
  assert "table 't': sampling.budget varies and is neither" in told
  assert "plot 'p': privacy.gamma varies and is neither" in told


def test_a_remote_client_and_no_trials_are_refused():
  study = _study({"seed": (1,)})
  study.client.remote = True
  with pytest.raises(errors.ConfigError, match="a study simulates"):
    study.validate()
  with pytest.raises(errors.ConfigError, match="no trials"):
    _study().validate()
  with pytest.raises(errors.ConfigError, match="two trials are seed=1"):
    _study({"seed": (1,)}, {"seed": (1,)}).validate()


def test_the_command_of_a_trial_says_what_differs_from_the_file():
  study = _study(
    {"sampling.method": ("random",), "seed": (2,)},
  )
  [trial] = study.trials()
  words = shlex.split(plan.command(study, trial))
  assert words[:3] == ["python", "-m", "ecos_jax.train"]
  assert set(words[5:]) == {
    "--config.seed=2",
    "--config.privacy.insecure_noise_seed=2",
    "--config.sampling.method=random",
  }
  assert words[4] == "--workdir=runs/trial"
  assert words[3].endswith("configs/digits_manual.py:smoke")

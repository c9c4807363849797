import dataclasses
import json
import re

import numpy as np
import pytest

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.config import reading


def _changed():
  config = config_lib.Config(seed=7)
  config.data.sources = ("folder:a", "folder:b")
  config.encoder.image_size = 224
  config.sampling.method = config_lib.Method.RANDOM
  config.client.remote = True
  return config


def test_a_configuration_survives_json_nested_or_flat():
  config = _changed()
  assert reading.read(json.loads(config.to_json())) == config
  flat = json.loads(json.dumps(config_lib.flatten(config)))
  assert flat == config_lib.flatten(config)
  assert reading.read(flat) == config


@pytest.mark.parametrize(
  ("name", "value", "said"),
  [
    (
      "sampling.bugdet",
      3,
      "no field .*bugdet; valid: .*sampling.budget",
    ),
    ("sampling", 3, "no field sampling; valid: seed"),
    ("seed.x", 3, "no field seed.x"),
    ("sampling.budget", 2.5, "`sampling.budget` cannot be 2.5: .* type int"),
    ("sampling.budget", True, "of type int"),
    ("train.learning_rate", "1", "of type float"),
    ("sampling.budget", np.float32(2), "of type int"),
    ("sampling.density_power", True, r"of type float \| None"),
    ("train.learning_rate", 10**400, "too large"),
    ("encoder.image_size", "x", "`encoder.image_size` cannot be 'x'"),
    ("sampling.method", "best", "must be one of ecos, ecos_paper, random"),
    ("data.sources", "folder:a", r"of type tuple\[str, "),
  ],
)
def test_wrong_values_are_named_and_left_out(name, value, said):
  config = config_lib.Config()
  [wrong] = reading.assign(config, {name: value})
  assert re.search(said, wrong)
  assert config == config_lib.Config()


def test_values_are_converted_to_the_type_of_their_field():
  config = config_lib.Config()
  values = {
    "train.learning_rate": 1,
    "sampling.budget": np.int64(7),
    "sampling.likely": np.float32(0.5),
    "sampling.density_power": 1,
    "data.classes": ["a", "b"],
    "sampling.method": config_lib.Method.RANDOM,
    "encoder.weights": None,
  }
  assert not reading.assign(config, values)
  assert isinstance(config.train.learning_rate, float)
  assert type(config.sampling.budget) is int and config.sampling.budget == 7
  assert type(config.sampling.likely) is float
  assert type(config.sampling.density_power) is float
  assert config.data.classes == ("a", "b")
  assert config.sampling.method is config_lib.Method.RANDOM


def test_arguments_become_a_group_or_are_all_named():
  group = reading.from_arguments(config_lib.Sampling, budget=np.int64(9))
  assert group == config_lib.Sampling(budget=9)
  with pytest.raises(errors.ConfigError) as error:
    reading.from_arguments(
      config_lib.Sampling, budget="9", likely=2.0, within="middle"
    )
  assert "`budget` cannot be '9'" in str(error.value)
  assert "`likely` must lie in (0, 1]" in str(error.value)
  assert "`within` cannot be 'middle'" in str(error.value)


def test_missing_and_unknown_fields_are_told_at_once():
  fields = config_lib.flatten(_changed())
  del fields["seed"]
  fields["sampling.bugdet"] = 3
  with pytest.raises(errors.ConfigError, match=r"bugdet.*no value of seed"):
    reading.read(fields)


def test_json_holds_every_field():
  stored = json.loads(config_lib.Config().to_json())
  assert stored["sampling"]["method"] == "ecos"
  assert stored.keys() == {
    field.name for field in dataclasses.fields(config_lib.Config)
  }

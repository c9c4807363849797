import dataclasses
import json

import pytest

from ecos_jax import config as config_lib
from ecos_jax import errors


def test_json_holds_every_field():
  config = config_lib.Config()
  stored = json.loads(config.to_json())
  assert stored["sampling"]["method"] == "ecos"
  assert stored.keys() == {f.name for f in dataclasses.fields(config)}


def test_unknown_field_gets_the_valid_ones():
  with pytest.raises(errors.ConfigError) as caught:
    config_lib.check_overrides(["--config.sampling.bugdet=3"])
  assert "--config.sampling.bugdet" in str(caught.value)
  assert "sampling.budget" in str(caught.value)
  config_lib.check_overrides(["--config.sampling.budget=3", "--workdir=x"])

"""Every study of configs/studies, with its argument `smoke`."""

import json
from pathlib import Path
import pkgutil
import re

from flax import nnx
import pytest

from ecos_jax import children
from ecos_jax import errors
from ecos_jax.data import digits
from ecos_jax.data import icons
from ecos_jax.models import networks
from ecos_jax.study import plan
from ecos_jax.study import results
from ecos_jax.study import run
from ecos_jax.study import trial
from tests.data import made_icons

_ROOT = Path(__file__).parents[2]
_STUDIES = sorted(p.stem for p in (_ROOT / "configs/studies").glob("*.py"))


def _get_config(name: str, argument: str) -> plan.Study:
  return plan.read(f"{_ROOT / 'configs/studies' / name}.py:{argument}")


@pytest.mark.parametrize("name", _STUDIES)
def test_a_study_is_valid_in_full_and_named_for_its_file(name):
  study = _get_config(name, "")
  study.validate()
  assert study.name == name
  own = {
    "icons": icons.THEMES,
    "persons": ("mnist_m",),
    "clients": ("usps", "mnist", "mnist_m", "synthdigits"),
    "clients_icons": ("papirus+numix", "oxygen+breeze", "faenza+obsidian"),
    "groups": ("usps+mnist+mnist_m+synthdigits",),
    "unlabelled": ("usps", "mnist_m", "synthdigits"),
  }
  clients = own.get(name, digits.DOMAINS)
  assert {t.config.data.client for t in study.trials()} == set(clients)
  with pytest.raises(errors.ConfigError, match="valid: smoke"):
    _get_config(name, "fast")


@pytest.fixture(scope="module")
def child(tmp_path_factory):
  """Returns a stand-in for `children.Child` that runs trials in this process.

  All studies share data, finished stages and compiled programs.
  """
  stages = tmp_path_factory.mktemp("stages")
  load = trial.remembering()

  class Child:
    def __init__(self, start, job, environment, log):
      del environment, log
      Path(job["workdir"], "stages").symlink_to(stages)
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "remembering", lambda: load)
        self._answer = pkgutil.resolve_name(start)(job)

    def call(self, order):
      answer = self._answer(json.loads(json.dumps(order)))
      return json.loads(json.dumps(answer))

    def close(self):
      pass

  return Child


class _Tiny(nnx.Module):
  """Stands in for the networks of Digits: the tables need some accuracy."""

  def __init__(self, num_classes, rngs):
    self.head = nnx.Linear(3, num_classes, rngs=rngs)

  def __call__(self, images):
    return self.head(images.mean(axis=(1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", _STUDIES)
def test_smoke(name, tmp_path, child, monkeypatch):
  monkeypatch.setattr(children, "Child", child)
  for network in ("convnet", "convnet_small"):
    monkeypatch.setitem(networks._MODELS, network, _Tiny)
  study = _get_config(name, "smoke")
  if name in ("icons", "clients_icons"):
    study.data.dir = made_icons.write(tmp_path)
  run.run(study, study.trials(), tmp_path, 1)
  text, files = results.write(study, tmp_path, "command")
  rows = json.loads((tmp_path / "rows.json").read_bytes())
  assert len(rows) == len(study.trials())
  tables = [text, *(file.read_text() for file in tmp_path.glob("*.csv"))]
  assert len(tables) == 1 + len(study.tables) + (study.paper is not None)
  for table in tables:
    assert not re.search(r"\bmissing\b", table)
    assert "seeds)" not in table
  for plot in study.plots:
    assert f"![{plot.name}]({plot.name}.svg)" in text
    assert tmp_path / f"{plot.name}.svg" in files

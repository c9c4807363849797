"""Every study of configs/studies, as its argument `smoke`, by the command."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

from ecos_jax import errors
from ecos_jax.study import plan

_ROOT = Path(__file__).parents[2]
_STUDIES = sorted(p.stem for p in (_ROOT / "configs/studies").glob("*.py"))


def _get_config(name: str, argument: str) -> plan.Study:
  return plan.read(f"{_ROOT / 'configs/studies' / name}.py:{argument}")


@pytest.mark.parametrize("name", _STUDIES)
def test_a_study_is_valid_in_full_and_named_for_its_file(name):
  study = _get_config(name, "")
  study.validate()
  assert study.name == name
  assert {cell.config.data.client for cell in study.cells()} == {
    *("mnist", "usps", "optdigits", "mnist_m", "synthdigits")
  }
  with pytest.raises(errors.ConfigError, match="valid: smoke"):
    _get_config(name, "fast")


@pytest.mark.slow
@pytest.mark.parametrize("name", _STUDIES)
def test_smoke(name, tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "ecos_jax.study", "--workers=1"),
      *(f"--config=configs/studies/{name}.py:smoke", f"--workdir={tmp_path}"),
      f"--out={tmp_path / 'document.md'}",
    ],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  study = _get_config(name, "smoke")
  rows = json.loads((tmp_path / "rows.json").read_bytes())
  assert len(rows) == len(study.cells())
  text = (tmp_path / "results.md").read_text()
  tables = [text, *(file.read_text() for file in tmp_path.glob("*.csv"))]
  assert len(tables) == 1 + len(study.tables) + (study.paper is not None)
  for table in tables:
    assert not re.search(r"\bmissing\b", table)
    assert "seeds)" not in table
  for plot in study.plots:
    assert f"![{plot.name}]({plot.name}.svg)" in text
    assert (tmp_path / f"{plot.name}.png").exists()
    assert (tmp_path / "document" / f"{name}-{plot.name}.svg").exists()

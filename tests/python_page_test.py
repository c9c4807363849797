"""The code of docs/python.md runs, prints what it says and makes its pictures.

To make the pictures anew: python tests/python_page_test.py
"""

import contextlib
import io
import os
from pathlib import Path
import re
import shutil
import tempfile
from typing import Any

import matplotlib
import pytest

_DOCS = Path(__file__).parents[1] / "docs"
_PAGE = (_DOCS / "python.md").read_text()
_PICTURES = re.findall(r"!\[.*\]\(python/(.*)\)", _PAGE)


def _blocks(language: str) -> list[str]:
  return re.findall(rf"```{language}\n(.*?)```", _PAGE, re.DOTALL)


def _run(folder: Path, epsilon: str = "0.5") -> tuple[dict[str, Any], str]:
  """Returns the names that the page's code defines, and what it prints."""
  matplotlib.use("agg")
  names: dict[str, Any] = {}
  out = io.StringIO()
  before = Path.cwd()
  os.chdir(folder)
  try:
    with contextlib.redirect_stdout(out):
      for block in _blocks("python"):
        exec(block.replace("epsilon=0.5", f"epsilon={epsilon}"), names)
  finally:
    os.chdir(before)
    names["plt"].close("all")
  return names, out.getvalue()


@pytest.mark.slow
def test_the_page_prints_and_shows_what_it_says(tmp_path):
  # Half of the page's noise, which alone could bring the share below .75.
  names, out = _run(tmp_path, epsilon="1.0")
  said = "".join(_blocks("text"))
  # Noise makes the answer a few bytes and its choice a percent different.
  numbers = re.compile(r"[\d,]*\d")
  assert numbers.sub("#", out) == numbers.sub("#", said)
  assert out.splitlines()[:2] == said.splitlines()[:2]
  assert names["share"] > 0.75
  for file in _PICTURES:
    assert (tmp_path / file).stat().st_size > 1000
    assert (_DOCS / "python" / file).exists()


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as folder:
    print(_run(Path(folder))[1])
    for picture in _PICTURES:
      shutil.copy(Path(folder, picture), _DOCS / "python" / picture)

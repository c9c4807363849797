"""The Dockerfile, read: no engine is at hand, so it was never built."""

import importlib.metadata
from pathlib import Path
import re
import subprocess
import tomllib

from packaging import requirements
import pytest

_ROOT = Path(__file__).parents[2]
_TEXT = (_ROOT / "launch" / "Dockerfile").read_text()
_KNOWN = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENTRYPOINT"}


def _instructions() -> list[tuple[str, str]]:
  lines = [line for line in _TEXT.splitlines() if not line.startswith("#")]
  text = "\n".join(lines).replace("\\\n", " ")
  return [tuple(line.split(maxsplit=1)) for line in text.splitlines()]


def test_instructions_are_known_and_copied_files_there():
  instructions = _instructions()
  assert instructions[0][0] == "FROM"
  assert {name for name, _ in instructions} <= _KNOWN
  for name, arguments in instructions:
    if name == "COPY":
      for source in arguments.split()[:-1]:
        assert (_ROOT / source).exists()


def test_the_python_is_one_we_support():
  _, image = _instructions()[0]
  version = re.fullmatch(r"python:3\.(\d+)-slim", image)
  assert version and int(version[1]) >= 11


@pytest.mark.parametrize("accelerator", ["cpu", "cuda13", "tpu"])
def test_what_is_installed_has_these_extras(accelerator, tmp_path):
  """Runs the RUN lines with a pip that prints its arguments."""
  pip = tmp_path / "pip"
  pip.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
  pip.chmod(0o755)
  [run] = [text for name, text in _instructions() if name == "RUN"]
  out = subprocess.run(
    ["sh", "-ec", run],
    env={"PATH": f"{tmp_path}:/usr/bin:/bin", "ACCELERATOR": accelerator},
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  ours, jax = [line for line in out.splitlines() if "[" in line]
  project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
  wanted = requirements.Requirement(ours.replace(".", "ecos_jax", 1))
  assert wanted.extras <= set(project["optional-dependencies"])
  jax = requirements.Requirement(jax)
  known = importlib.metadata.metadata("jax").get_all("Provides-Extra")
  assert accelerator in jax.extras <= set(known)

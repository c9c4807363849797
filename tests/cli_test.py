import os
import subprocess
import sys

from absl import flags
import pytest

from ecos_jax import cli
from ecos_jax import errors


@pytest.fixture
def defined(monkeypatch):
  """Flags of a command, instead of those of the tests' process."""
  values = flags.FlagValues()
  monkeypatch.setattr(cli.flags, "FLAGS", values)
  flags.DEFINE_string("data", None, "", flag_values=values)
  return values


def test_names_become_the_flags_of_a_command(defined):
  said = "`data`=x, `budget`, `codebook.size` and `a b`"
  assert cli.with_flags(said) == "--data=x, budget, codebook.size and `a b`"
  flags.DEFINE_string("config", None, "", flag_values=defined)
  assert cli.with_flags(said) == (
    "--data=x, --config.sampling.budget, --config.codebook.size and `a b`"
  )


def test_a_last_name_of_two_fields_is_no_flag(defined):
  flags.DEFINE_string("config", None, "", flag_values=defined)
  assert cli.with_flags("`gamma`") == "gamma"
  assert cli.with_flags("`labelling.gamma`") == "--config.labelling.gamma"


def test_an_error_is_about_an_argument():
  with (
    pytest.raises(errors.ConfigError, match=r"^`data.dir`=x: it is gone$"),
    errors.about("data.dir", "x"),
  ):
    raise errors.ConfigError("it is gone")


def test_an_unknown_field_gets_the_valid_ones():
  with pytest.raises(errors.ConfigError) as caught:
    cli.check_overrides(["--config.sampling.bugdet=3"])
  assert "--config.sampling.bugdet" in str(caught.value)
  assert "sampling.budget" in str(caught.value)
  cli.check_overrides(["--config.sampling.budget=3", "--workdir=x"])


def test_a_name_that_is_not_utf8_does_not_end_a_command():
  """A client's answer was in the ledger when the name of the file was shown."""
  code = """
import os
from ecos_jax import cli
cli.run(lambda argv: print("wrote", os.fsdecode(b"caf\\xe9")))
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "wrote caf\\udce9\n"

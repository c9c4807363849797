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


def _run(body, redirect="", **environment):
  """Runs a command whose main has this body; returns code, stdout, stderr."""
  lines = "\n  ".join(body.splitlines())
  code = f"""
from ecos_jax import cli
def main(argv):
  {lines}
path = cli.define_path("path", None, "")
paths = cli.define_paths("paths", "")
cli.run(main)
"""
  script = f'"$0" -c "$1" "${{@:2}}" {redirect}'
  arguments = environment.pop("arguments", [])
  done = subprocess.run(
    ["bash", "-c", script, sys.executable, code, *arguments],
    env=os.environ | environment,
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
  "closed", ["<&- >&- 2>&-", ">&-", "2>&-", "<&- 2>&-", "<&-"]
)
def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path, closed):
  """What is printed would be written into a ledger."""
  code, *_ = _run(
    f"""import sys
with open({str(tmp_path / "ledger")!r}, "w") as file:
  file.write("entry")
  print("said", flush=True)
  print("said", file=sys.stderr, flush=True)
  assert not sys.stdin.isatty()""",
    closed,
  )
  assert code == 0
  assert (tmp_path / "ledger").read_text() == "entry"


def test_a_command_computes_alike_whatever_jax_is_set_to():
  body = """import jax, jax.numpy as jnp, os
print(jnp.arange(3).dtype, jax.random.bits(jax.random.key(3)))
print(jnp.ones(3) * jnp.ones((2, 3), jnp.bfloat16) @ jnp.ones(3))
print([name for name in os.environ if name.startswith("JAX_")])"""
  plain = _run(body)
  assert plain[0] == 0, plain
  others = _run(
    body,
    JAX_ENABLE_X64="1",
    JAX_NUMPY_DTYPE_PROMOTION="strict",
    JAX_NUMPY_RANK_PROMOTION="raise",
    JAX_DEFAULT_PRNG_IMPL="rbg",
    JAX_THREEFRY_PARTITIONABLE="0",
  )
  assert others == plain


@pytest.mark.parametrize("platform", ["cuda", "tpu", "rocket"])
def test_a_device_that_is_not_there_is_told_in_a_line(platform):
  body = "import jax\njax.numpy.ones(3)"
  code, _, err = _run(body, JAX_PLATFORMS=platform)
  assert code == 1
  [line] = err.splitlines()
  assert line.startswith(f"error: JAX_PLATFORMS={platform}: JAX finds no such")


def test_too_little_memory_is_told_in_a_line():
  code, _, err = _run("import numpy\nnumpy.ones(2**55)")
  assert code == 1
  [line] = err.splitlines()
  assert line.startswith("error: there is not enough memory (Unable to alloc")
  body = "import jax\njax.numpy.ones(2**40).block_until_ready()"
  code, _, err = _run(body)
  assert code == 1
  assert "Traceback" not in err and "error: there is not enough" in err


def test_paths_are_expanded_and_addresses_refused(tmp_path):
  home = str(tmp_path)
  body = "print(path.value, *paths.value)"
  given = ["--path=~/a b", "--paths=~,x"]
  _, out, _ = _run(body, arguments=given, HOME=home)
  assert out == f"{home}/a b {home} x\n"
  for wrong in ("--path=gs://bucket/runs", "--paths=a,s3://b"):
    code, _, err = _run(body, arguments=[wrong])
    assert code == 1
    [line] = err.splitlines()
    assert line.startswith(f"error: flag {wrong}: it must be a path")


def test_help_lists_the_options_whichever_module_defines_them():
  command = [sys.executable, "-m", "ecos_jax.client.ledger", "--help"]
  told = subprocess.run(command, capture_output=True, text=True).stdout
  for flag in ("ledger", "max_epsilon", "delta", "relation", "unit", "out"):
    assert f"\n  --{flag}:" in told
  assert "--logtostderr" not in told


def test_help_of_a_package_says_what_it_does():
  command = [sys.executable, "-m", "ecos_jax.report", "--help"]
  told = subprocess.run(command, capture_output=True, text=True).stdout
  assert told.startswith(
    "The results of runs: a table on the terminal, and one"
  )
  assert "\n  --workdir:" in told


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

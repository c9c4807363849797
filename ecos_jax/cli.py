"""How every command of the package starts and ends."""

from collections.abc import Callable, Collection
import io
import logging as standard_logging
import math
import os
from pathlib import Path
import re
import signal
import sys
from typing import NoReturn, TypeVar

from absl import app
from absl import flags
from absl import logging
import jax

from ecos_jax import config
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax.config import reading

EXIT_INTERRUPTED = 130
_Config = TypeVar("_Config", bound=config.Config)


def with_flags(text: str) -> str:
  """Returns the text of an error, with flags in place of argument names.

  A name in backticks stands for the flag of that name, or else for the field of
  the configuration that has it as its full or its last name. A name that stands
  for none, or for several, only loses its backticks.
  """

  def flag(name: re.Match[str]) -> str:
    if name[1] in flags.FLAGS:
      return f"--{name[1]}"
    fields = config.flatten(config.Config()) if "config" in flags.FLAGS else {}
    if name[1] in fields:
      return f"--config.{name[1]}"
    found = [field for field in fields if field.endswith(f".{name[1]}")]
    return f"--config.{found[0]}" if len(found) == 1 else name[1]

  return re.sub(r"`([a-z_]+(?:\.[a-z_]+)*)`", flag, text)


def _fail(error: Exception) -> NoReturn:
  text = with_flags(" ".join(str(error).split()))
  distributed.leave(distributed.EXIT_ERROR, f"error: {text}")


def config_of(flag: flags.FlagHolder, kind: type[_Config]) -> _Config:
  """Returns the value of a `--config` flag.

  Args:
    flag: From `config_flags.DEFINE_config_file`.
    kind: What get_config() of the file must return.

  Raises:
    ConfigError: There is no such file, or it returns something else.
  """
  value = flag.value
  try:
    # A missing file shows only when an attribute of its value is touched.
    if hasattr(value, "seed") and isinstance(value, kind):
      return value
  except OSError as error:
    raise errors.ConfigError(f"--config: {error}") from None
  raise errors.ConfigError(
    "--config must name a file whose get_config() returns "
    f"{kind.__module__}.{kind.__name__}, got {type(value).__name__}"
  )


def check_overrides(argv: list[str]) -> None:
  """Checks that every `--config.a.b` on a command line names a field.

  Raises:
    ConfigError: An unknown field, with the valid ones of its group.
  """
  valid = config.flatten(config.Config())
  for argument in argv:
    name, _, _ = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or not name.startswith("config."):
      continue
    name = name.removeprefix("config.")
    if name not in valid:
      raise errors.ConfigError(
        f"unknown field --config.{name}; valid: {reading.similar(name)}"
      )


class _PathParser(flags.ArgumentParser):
  """The path of a file or folder, with `~` expanded."""

  def parse(self, argument: str) -> str:
    """Returns the path; raises ValueError if it is an address."""
    if "://" in argument:
      raise ValueError(
        "it must be a path: only data and features can be at an address"
      )
    try:
      return str(Path(argument).expanduser()) if argument else argument
    except RuntimeError as error:
      raise ValueError(str(error)) from None


def define_path(
  name: str, default: str | None, text: str, *, required: bool = False
) -> flags.FlagHolder:
  """Defines a flag whose value is a path.

  Args:
    name: Of the flag.
    default: Its value if it is not given.
    text: What it means, for `--help`.
    required: Whether it must be given.
  """
  return flags.DEFINE(_PathParser(), name, default, text, required=required)


def define_paths(name: str, text: str) -> flags.FlagHolder:
  """Defines a flag whose value is a list of paths, separated by commas."""

  class Parser(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
      return list(map(_PathParser().parse, super().parse(argument)))

  return flags.DEFINE(Parser(), name, None, text)


def _parse_flags(argv: list[str], actions: Collection[str]) -> list[str]:
  try:
    check_overrides(argv)
    rest = flags.FLAGS(argv)
    if actions and (len(rest) != 2 or rest[1] not in actions):
      raise errors.ConfigError(f"say one of: {', '.join(actions)}")
    if not actions and len(rest) > 1:
      raise errors.ConfigError(
        f"unexpected argument {rest[1]!r}: options start with --"
      )
    for name in flags.FLAGS:
      value = flags.FLAGS[name].value
      # A NaN passes the bounds of a flag, and no comparison stops it later.
      if isinstance(value, float) and math.isnan(value):
        raise errors.ConfigError(f"--{name}=nan is not a number")
    return rest
  # OSError: a field of a config file that does not exist is set.
  except (flags.Error, errors.EcosError, OSError) as error:
    _fail(error)


def _leave(signum: int, frame: object) -> NoReturn:
  """Ends the process at once on Ctrl-C.

  Every command survives a kill at any moment, so there is nothing to clean up.
  An exception might be swallowed by a callback, or wait for threads.
  """
  del signum, frame
  print("\ninterrupted: the same command goes on from here", file=sys.stderr)
  sys.stdout.flush()
  os._exit(EXIT_INTERRUPTED)


# An environment may say otherwise: other types, other numbers from one key.
_JAX = {
  "jax_enable_x64": False,
  "jax_numpy_dtype_promotion": "standard",
  "jax_numpy_rank_promotion": "allow",
  "jax_transfer_guard": "allow",
  "jax_default_prng_impl": "threefry2x32",
  "jax_threefry_partitionable": True,
}


def _open_streams() -> None:
  """Opens stdin, stdout and stderr if they are closed, and takes any text.

  Otherwise the next file that is opened, perhaps a ledger, would be stdout.
  """
  for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(descriptor)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if getattr(sys, name) is None:
      mode = "w" if descriptor else "r"
      setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
  # A name that is not UTF-8 must not end a command that has spent something.
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


def _missing(error: Exception) -> errors.EcosError | None:
  """Returns what this machine lacks, if that is why a command failed."""
  text = str(error).partition("\n")[0]
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return errors.EcosError(
      f"there is not enough memory ({text or 'on the host'}): a smaller batch "
      "size, image size or codebook needs less"
    )
  platforms = os.environ.get("JAX_PLATFORMS")
  if not platforms or distributed.started():
    return None
  try:
    jax.devices()
  except Exception as why:  # JAX has no common class for it.
    reason = str(why).partition("\n")[0] or "its plugin is not installed"
    return errors.EcosError(
      f"JAX_PLATFORMS={platforms}: JAX finds no such device ({reason}): unset "
      "it, or install jax for this device"
    )
  return None


def run(
  main: Callable[[list[str]], None], actions: Collection[str] = ()
) -> None:
  """Runs a command, with errors of one line and these exit codes.

  | code | meaning |
  |---|---|
  | 0 | done |
  | 1 | an `EcosError`, a wrong flag, an error of a file, or a lost process |
  | 1 | too little memory, or no device as `JAX_PLATFORMS` wants it |
  | 75 | stopped on SIGTERM |
  | 130 | Ctrl-C |

  Any other exception is a defect of the program and keeps its traceback.
  Several processes end together.

  Args:
    main: The command. It gets argv without the flags.
    actions: What it can do, if the user has to say one; all else are flags.
  """

  def guarded(argv: list[str]) -> None:
    try:
      main(argv)
    except errors.EcosError as error:
      _fail(error)
    except errors.PreemptedError:
      distributed.leave(distributed.EXIT_PREEMPTED, distributed.PREEMPTED)
    except Exception as error:
      if isinstance(error, OSError) and error.errno is not None:
        _fail(error)
      if (missing := _missing(error)) is not None:
        _fail(missing)
      distributed.fail(error)

  # --help shows the docstring of the main module; that of a package is longer.
  module = sys.modules["__main__"]
  if module.__package__ and Path(module.__file__ or "").stem == "__main__":
    module.__doc__ = sys.modules[module.__package__].__doc__
  # Otherwise --help would leave out the flags that other modules define.
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    for flag in defined if module.startswith("ecos_jax.") else ():
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  _open_streams()
  for option, value in _JAX.items():
    jax.config.update(option, value)
    os.environ.pop(option.upper(), None)  # for child processes
  signal.signal(signal.SIGINT, _leave)
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  # Silences asyncio about tasks that a library abandons after an error.
  standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
  app.run(guarded, flags_parser=lambda argv: _parse_flags(argv, actions))

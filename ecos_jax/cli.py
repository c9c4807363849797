"""How every command of the package starts and ends."""

from collections.abc import Callable, Collection
import io
import logging as standard_logging
import math
import os
import re
import signal
import sys
from typing import NoReturn, TypeVar

from absl import app
from absl import flags
from absl import logging

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


def run(
  main: Callable[[list[str]], None], actions: Collection[str] = ()
) -> None:
  """Runs a command, with errors of one line and these exit codes.

  | code | meaning |
  |---|---|
  | 0 | done |
  | 1 | an `EcosError`, a wrong flag, an error of a file, or a lost process |
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
      distributed.fail(error)

  # A name that is not UTF-8 must not end a command that has spent something.
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  signal.signal(signal.SIGINT, _leave)
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  # Silences asyncio about tasks that a library abandons after an error.
  standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
  app.run(guarded, flags_parser=lambda argv: _parse_flags(argv, actions))

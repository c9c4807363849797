"""The errors that a user can act on, and the arguments that they name."""

from collections.abc import Iterator
import contextlib


class EcosError(Exception):
  """An error shown to the user as one line: what, where, what to do.

  The line names arguments and fields of the configuration in backticks:
  `codebook.size`. A command shows the flag instead: --config.codebook.size.

  Every other exception that escapes is a defect of the program and keeps its
  traceback.
  """


class ConfigError(EcosError):
  """A configuration that cannot run; the message names every wrong field."""


class PreemptedError(Exception):
  """The process was told to stop (SIGTERM), and stopped at a safe point."""


@contextlib.contextmanager
def about(argument: str, value: object) -> Iterator[None]:
  """Puts "`argument`=value: " before the errors that the block raises."""
  try:
    yield
  except EcosError as error:
    error.args = (f"`{argument}`={value}: {error}",)
    raise

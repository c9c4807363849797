"""The errors that a user can act on."""


class EcosError(Exception):
  """An error shown to the user as one line: what, where, what to do.

  Everything else that escapes is a defect of the program and keeps its
  traceback.
  """


class ConfigError(EcosError):
  """A configuration that cannot run; the message names every flag to change."""


class PreemptedError(Exception):
  """The process was told to stop (SIGTERM), and stopped at a safe point."""

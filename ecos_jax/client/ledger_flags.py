"""The flags that fix the promise of a ledger, and the ledger that they name."""

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import errors
from ecos_jax.config import limits
from ecos_jax.privacy import ledger


def define() -> None:
  """Defines the flags of commands that make or use a ledger."""
  cli.define_path(
    "ledger",
    None,
    "The file with the budget of these data and all answers about them.",
    required=True,
  )
  when = "fixed when the ledger is made"
  flags.DEFINE_float(
    "max_epsilon",
    None,
    f"The most that all answers may ever cost together, {when}; inf for no "
    "limit.",
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    "delta",
    None,
    f"The delta of (epsilon, delta), {when}; by default 1e-5.",
    lower_bound=limits.MIN_DELTA,
    upper_bound=limits.MAX_DELTA,
  )
  flags.DEFINE_enum_class(
    "relation",
    None,
    config.Relation,
    f"What epsilon hides, {when}: that a sample was added or removed "
    "(add_remove, the default), or replaced.",
  )
  flags.DEFINE_enum_class(
    "unit",
    None,
    config.Unit,
    f"Whose presence epsilon hides, {when}: that of one sample (default), or "
    "of one person with all samples of theirs. Of a person one random sample "
    "votes.",
  )


def fixed() -> dict[str, Any]:
  """Returns those fields of a ledger's guarantee that flags give."""
  names = ("max_epsilon", "delta", "relation", "unit")
  given = {name: flags.FLAGS[name].value for name in names}
  return {name: value for name, value in given.items() if value is not None}


def guarantee(path: Path) -> ledger.Guarantee:
  """Returns the guarantee of --ledger, after making it if --create_ledger.

  Raises:
    EcosError: There is no ledger, or it has another guarantee than the flags.
  """
  if flags.FLAGS.create_ledger:
    return create(path)
  found = ledger.read(path).guarantee
  if dataclasses.replace(found, **fixed()) != found:
    raise errors.EcosError(
      f"`ledger`: {path} was made for {found}, for good: leave out "
      "`max_epsilon`, `delta`, `relation` and `unit`"
    )
  return found


def create(path: Path) -> ledger.Guarantee:
  """Makes --ledger.

  Raises:
    EcosError: A flag is missing, or there is a ledger with another guarantee.
  """
  if flags.FLAGS.max_epsilon is None:
    raise errors.EcosError(
      "a new ledger needs `max_epsilon`: the most that all answers about these "
      "data may ever cost together"
    )
  return ledger.create(path, **fixed())

"""Fields of a configuration by their dotted names."""

import dataclasses
import enum
from typing import Any


def flatten(fields: Any, prefix: str = "") -> dict[str, Any]:
  """Returns every field by its dotted name, such as {'codebook.size': 100}.

  Args:
    fields: A configuration, a part of one, or the JSON object of one.
    prefix: What to put before each name.

  Returns:
    Values of JSON: enums by value, tuples as lists.
  """
  leaves = {}
  members = vars(fields) if dataclasses.is_dataclass(fields) else fields
  for name, member in members.items():
    if isinstance(member, dict) or dataclasses.is_dataclass(member):
      leaves |= flatten(member, f"{prefix}{name}.")
    elif isinstance(member, enum.Enum):
      leaves[prefix + name] = member.value
    else:
      leaves[prefix + name] = (
        list(member) if isinstance(member, tuple) else member
      )
  return leaves

"""A configuration read from JSON, and fields that are set by name."""

from collections.abc import Mapping
import dataclasses
import enum
import typing
from typing import Any

from ecos_jax import config as config_lib
from ecos_jax import errors


def read(fields: Mapping[str, Any]) -> config_lib.Config:
  """Returns the configuration with the given values.

  Args:
    fields: A value for every field: the object of `Config.to_json`, or what
      `flatten` returns.

  Raises:
    ConfigError: A field is missing, unknown, or of another type.
  """
  config, leaves = config_lib.Config(), config_lib.flatten(fields)
  wrong = assign(config, leaves)
  wrong += [
    f"there is no value of {name}"
    for name in config_lib.flatten(config)
    if name not in leaves
  ]
  if wrong:
    raise errors.ConfigError("; ".join(wrong))
  return config


def similar(name: str) -> str:
  """Returns the valid names in the group of an unknown field, for an error."""
  valid = config_lib.flatten(config_lib.Config())
  group = name.rpartition(".")[0]
  return ", ".join([f for f in valid if f.rpartition(".")[0] == group] or valid)


def assign(config: Any, values: Mapping[str, Any]) -> list[str]:
  """Sets fields; returns what is wrong with the values that are left out.

  Args:
    config: A configuration or one of its groups; is changed.
    values: Values by dotted name, as `flatten` returns them; enums and tuples
      may also be themselves.
  """
  wrong = []
  for name, value in values.items():
    *groups, last = name.split(".")
    owner: Any = config
    for group in groups:
      owner = getattr(owner, group, None)
    kind = typing.get_type_hints(type(owner)).get(last)
    if kind is None or dataclasses.is_dataclass(kind):
      wrong.append(f"there is no field {name}; valid: {similar(name)}")
      continue
    try:
      setattr(owner, last, _converted(kind, value))
    except ValueError as error:
      wrong.append(f"{name} cannot be {value!r}: {error}")
  return wrong


def _converted(kind: Any, value: Any) -> Any:
  """Returns a value of JSON as a field of this type holds it.

  Raises:
    ValueError: It cannot be one.
  """
  if isinstance(kind, type) and issubclass(kind, enum.Enum):
    try:
      return kind(value)
    except ValueError:
      members = ", ".join(member.value for member in kind)
      raise ValueError(f"it must be one of {members}") from None
  is_tuple = typing.get_origin(kind) is tuple
  if is_tuple and isinstance(value, list | tuple):
    return tuple(value)
  if kind is float and type(value) is int:
    return float(value)
  if is_tuple or type(value) not in (typing.get_args(kind) or (kind,)):
    name = kind.__name__ if isinstance(kind, type) else kind
    raise ValueError(f"it must be of type {name}")
  return value

"""A configuration read from JSON, and fields that are set by name."""

from collections.abc import Mapping
import dataclasses
import enum
import numbers
import typing
from typing import Any

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.config import checks

_Group = typing.TypeVar("_Group")


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


def from_arguments(kind: type[_Group], **values: Any) -> _Group:
  """Returns a group of the configuration, from the arguments of a function.

  Args:
    kind: The class of the group.
    **values: Values of its fields; the others have their defaults.

  Raises:
    ConfigError: A value is of another type than its field, or lies outside of
      its interval.
  """
  group = kind()
  if wrong := assign(group, values) + checks.range_errors(group):
    raise errors.ConfigError("; ".join(wrong))
  return group


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
    except (ValueError, OverflowError) as error:
      wrong.append(f"`{name}` cannot be {value!r}: {error}")
  return wrong


def _converted(kind: Any, value: Any) -> Any:
  """Returns a value of JSON, or of numpy, as a field of this type holds it.

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
  kinds = typing.get_args(kind) or (kind,)
  if not isinstance(value, bool):
    if int in kinds and isinstance(value, numbers.Integral):
      return int(value)
    if float in kinds and isinstance(value, numbers.Real):
      return float(value)
  if is_tuple or type(value) not in kinds:
    name = kind.__name__ if isinstance(kind, type) else kind
    raise ValueError(f"it must be of type {name}")
  return value

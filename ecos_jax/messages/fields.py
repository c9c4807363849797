"""Checks of the fields of messages, written as annotations.

A check is a function of a value and the field's name. It returns the value in
its normal form, or raises a `ProtocolError` that names the field.

    >>> from typing import Annotated
    >>> @dataclasses.dataclass(frozen=True)
    ... class Noise(Checked):
    ...   sigma: Annotated[float, number(0.25, 100.0)]
    >>> Noise(2).sigma
    2.0
    >>> Noise(0)
    Traceback (most recent call last):
      ...
    ecos_jax.messages.wire.ProtocolError: sigma must be in [0.25, 100]
"""

from collections.abc import Callable
import dataclasses
import enum
import re

import numpy as np

from ecos_jax.messages import wire

Check = Callable[[object, str], object]

FLOATS = (np.float16, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Checked:
  """A frozen dataclass whose annotations check its fields."""

  def __post_init__(self):
    """Replaces each field by its normal form; subclasses check more.

    Raises:
      ProtocolError: A field is refused.
    """
    for field in dataclasses.fields(self):
      for check in getattr(field.type, "__metadata__", ()):
        value = check(getattr(self, field.name), field.name)
        object.__setattr__(self, field.name, value)


def number(low: float, high: float) -> Check:
  """Returns a check for numbers in [low, high]; they become floats."""

  def check(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(
      value, int | float | np.integer | np.floating
    ):
      raise wire.ProtocolError(f"{field} must be a number")
    # Compared before the conversion, which a huge integer would overflow.
    if not low <= value <= high:
      raise wire.ProtocolError(f"{field} must be in [{low:g}, {high:g}]")
    return float(value)

  return check


def integer(low: int, high: int) -> Check:
  """Returns a check for integers in [low, high]."""

  def check(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
      raise wire.ProtocolError(f"{field} must be an integer")
    if not low <= value <= high:
      raise wire.ProtocolError(f"{field} must be in [{low}, {high}]")
    return int(value)

  return check


def boolean(value: object, field: str) -> bool:
  """Checks for true or false."""
  if not isinstance(value, bool):
    raise wire.ProtocolError(f"{field} must be true or false")
  return value


def text(pattern: re.Pattern[str]) -> Check:
  """Returns a check for text that matches the whole pattern."""

  def check(value: object, field: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
      raise wire.ProtocolError(
        f"{field} must be text that matches {pattern.pattern}"
      )
    return value

  return check


def constant(expected: str) -> Check:
  """Returns a check for one text."""

  def check(value: object, field: str) -> str:
    if value != expected:
      raise wire.ProtocolError(f"{field} must be {expected}")
    return expected

  return check


def member(members: type[enum.Enum]) -> Check:
  """Returns a check for a member of an enum or its value, which it becomes."""

  def check(value: object, field: str) -> str:
    try:
      return members(value).value
    except ValueError as error:
      names = ", ".join(member.value for member in members)
      raise wire.ProtocolError(f"{field} must be one of {names}") from error

  return check


def optional(check: Check) -> Check:
  """Returns a check that also lets None pass."""
  return lambda value, field: None if value is None else check(value, field)


def array(dtypes: tuple[type, ...], *most: int) -> Check:
  """Returns a check for finite arrays; they become read-only copies.

  Args:
    dtypes: The types that are allowed.
    *most: The largest length of each axis; the smallest is 1.
  """

  def check(value: object, field: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype not in dtypes:
      names = " or ".join(np.dtype(dtype).name for dtype in dtypes)
      raise wire.ProtocolError(f"{field} must be a {names} array")
    if value.ndim != len(most) or not all(
      1 <= size <= limit for size, limit in zip(value.shape, most, strict=True)
    ):
      raise wire.ProtocolError(
        f"{field} must have {len(most)} axes of 1 to {most}, got "
        f"{list(value.shape)}"
      )
    if value.nbytes + wire.MAX_HEADER_BYTES > wire.MAX_BYTES:
      raise wire.ProtocolError(
        f"{field} must be smaller than {wire.MAX_BYTES} bytes"
      )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
      raise wire.ProtocolError(
        f"{field} must be finite: it holds NaN or infinity"
      )
    value = np.array(value, order="C")
    value.flags.writeable = False
    return value

  return check

import dataclasses
import enum
import re
from typing import Annotated

import numpy as np
import pytest

from ecos_jax.messages import fields
from ecos_jax.messages import wire


class _Size(enum.Enum):
  SMALL = "small"
  LARGE = "large"


_TEXT = fields.text(re.compile("[a-z]{1,3}"))
_ARRAY = fields.array((np.float16, np.int64), 3, 2)


@pytest.mark.parametrize(
  ("check", "value", "normal"),
  [
    (fields.number(0, 2), np.float32(0.5), 0.5),
    (fields.number(0, 2), 2, 2.0),
    (fields.integer(-1, 1), np.int8(-1), -1),
    (fields.boolean, False, False),
    (_TEXT, "abc", "abc"),
    (fields.constant("one"), "one", "one"),
    (fields.member(_Size), "small", "small"),
    (fields.member(_Size), _Size.LARGE, "large"),
    (fields.optional(_TEXT), None, None),
    (fields.optional(_TEXT), "a", "a"),
  ],
)
def test_a_value_gets_its_normal_form(check, value, normal):
  found = check(value, "it")
  assert found == normal and type(found) is type(normal)


@pytest.mark.parametrize(
  ("check", "value", "said"),
  [
    (fields.number(0, 2), True, "must be a number"),
    (fields.number(0, 2), "1", "must be a number"),
    (fields.number(0, 2), 2.001, r"must be in \[0, 2\]"),
    (fields.number(0, 2), float("nan"), r"must be in \[0, 2\]"),
    # Larger than any float.
    (fields.number(0, 2), 10**400, r"must be in \[0, 2\]"),
    (fields.integer(-1, 1), True, "must be an integer"),
    (fields.integer(-1, 1), 1.0, "must be an integer"),
    (fields.integer(-1, 1), -2, r"must be in \[-1, 1\]"),
    (fields.boolean, 1, "must be true or false"),
    (_TEXT, "abcd", "must be text that matches"),
    (_TEXT, "a\n", "must be text that matches"),
    (_TEXT, b"a", "must be text that matches"),
    (fields.constant("one"), "two", "must be one$"),
    (fields.member(_Size), "tiny", "must be one of small, large"),
    (fields.optional(_TEXT), "", "must be text that matches"),
    (_ARRAY, [[1, 2]], "must be a float16 or int64 array"),
    (_ARRAY, np.ones((1, 2)), "must be a float16 or int64 array"),
    (_ARRAY, np.ones(2, int), "must have 2 axes"),
    (_ARRAY, np.ones((0, 2), int), "must have 2 axes"),
    (_ARRAY, np.ones((4, 2), int), "must have 2 axes"),
    (_ARRAY, np.full((1, 1), np.inf, np.float16), "must be finite"),
  ],
)
def test_other_values_are_refused_by_the_name_of_the_field(check, value, said):
  with pytest.raises(wire.ProtocolError, match=f"^it {said}"):
    check(value, "it")


def test_an_array_becomes_a_copy_that_nobody_can_write_to():
  given = np.arange(6).reshape(2, 3).T
  found = _ARRAY(given, "it")
  np.testing.assert_array_equal(found, given)
  assert found.flags.c_contiguous and not np.shares_memory(found, given)
  with pytest.raises(ValueError, match="read-only"):
    found[0, 0] = 1


def test_an_array_larger_than_a_message_is_refused():
  huge = np.broadcast_to(np.int8(0), (wire.MAX_BYTES,))
  check = fields.array((np.int8,), wire.MAX_BYTES)
  with pytest.raises(wire.ProtocolError, match="must be smaller than"):
    check(huge, "it")


def test_annotations_check_the_fields_of_a_dataclass():
  @dataclasses.dataclass(frozen=True)
  class Noise(fields.Checked):
    sigma: Annotated[float, fields.number(1, 5)]
    note: str = "unchecked"

  assert Noise(np.int64(2)).sigma == 2.0
  with pytest.raises(wire.ProtocolError, match=r"sigma must be in \[1, 5\]"):
    Noise(7)
  with pytest.raises(wire.ProtocolError, match="sigma"):
    dataclasses.replace(Noise(2), sigma=0)

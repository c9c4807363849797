import dataclasses

import pytest

from ecos_jax import config
from ecos_jax import messages
from tests.messages import examples


def test_terms_and_statements_say_the_unit():
  for message, name in (
    (examples.QUERY, "terms"),
    (examples.RESPONSE, "statement"),
    (examples.LABEL_RESPONSE, "terms"),
  ):
    assert getattr(message, name).unit == "sample"
    terms = dataclasses.replace(getattr(message, name), unit="person")
    other = dataclasses.replace(message, **{name: terms})
    received = type(message).from_bytes(other.to_bytes())
    assert getattr(received, name).unit == "person"
    for wrong in ("household", ..., 1):
      with pytest.raises(messages.ProtocolError, match="unit"):
        type(message).from_bytes(examples.with_fields(message, unit=wrong))
  with pytest.raises(messages.ProtocolError, match=r"version must be 3.*newer"):
    messages.Query.from_bytes(examples.with_fields(examples.QUERY, version=2))


def test_a_relation_may_come_from_the_configuration():
  relation = config.Relation.REPLACE_ONE
  assert messages.Terms(5, 1, 1e-5, relation).relation == "replace_one"

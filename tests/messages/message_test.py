import dataclasses
import random

import numpy as np
import pytest
from safetensors import numpy as safetensors

from ecos_jax import messages
from tests.messages import examples
from tests.messages import mutants


@pytest.mark.parametrize("message", examples.MESSAGES, ids=examples.KINDS)
def test_a_message_survives_the_wire(message):
  data = message.to_bytes()
  received = type(message).from_bytes(data)
  assert received.to_bytes() == data
  for field in dataclasses.fields(message):
    sent, got = (getattr(m, field.name) for m in (message, received))
    if isinstance(sent, np.ndarray):
      assert got.dtype == sent.dtype
      np.testing.assert_array_equal(got, sent)
    else:
      assert got == sent


@pytest.mark.parametrize("message", examples.MESSAGES, ids=examples.KINDS)
def test_a_message_is_a_safetensors_file(message):
  arrays = safetensors.load(message.to_bytes())
  own = {
    name: value
    for name, value in vars(message).items()
    if isinstance(value, np.ndarray)
  }
  assert arrays.keys() == own.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, own[name])


@pytest.mark.parametrize("message", examples.MESSAGES, ids=examples.KINDS)
def test_other_kinds_are_refused(message):
  for other in examples.MESSAGES:
    if type(other) is not type(message):
      with pytest.raises(messages.ProtocolError):
        type(message).from_bytes(other.to_bytes())


def test_a_message_does_not_change_with_the_array_it_was_made_of():
  centroids = np.zeros((2, 3), np.float32)
  query = dataclasses.replace(examples.QUERY, centroids=centroids)
  centroids[0, 0] = 1
  assert query.centroids[0, 0] == 0
  with pytest.raises(ValueError, match="read-only"):
    query.centroids[0, 0] = 1


@pytest.mark.parametrize("message", examples.MESSAGES, ids=examples.KINDS)
def test_ten_thousand_mutated_messages_are_refused_or_whole(message):
  rng = random.Random(20)
  data = message.to_bytes()
  others = [other.to_bytes() for other in examples.MESSAGES]
  accepted = 0
  for _ in range(10_000):
    mutant = mutants.mutate(data, others, rng)
    try:
      received = type(message).from_bytes(mutant)
    except messages.ProtocolError:
      continue
    # Another message of the kind, which says just what its bytes say.
    assert received.to_bytes() == mutant
    accepted += 1
  # Flipped bits of numbers and names make other valid messages.
  assert accepted < 3_000

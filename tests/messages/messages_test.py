import dataclasses
import json
import random
import struct
import tracemalloc

import numpy as np
import pytest
from safetensors import numpy as safetensors

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.messages import wire
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


def _hostile_headers():
  header, body = examples.split(examples.QUERY.to_bytes())
  text = examples.QUERY.to_bytes()[8 : -len(body)].rstrip()
  tensor = header["centroids"]
  yield (
    "duplicate field",
    mutants.join(
      text[:-1] + b',"centroids":' + json.dumps(tensor).encode() + b"}", body
    ),
  )
  yield "more space", mutants.join(text + b" " * 64, body)
  yield "other order", mutants.join(dict(reversed(header.items())), body)
  yield "second tensor", examples.canonical({**header, "z": tensor}, body)
  yield "bytes behind", examples.QUERY.to_bytes() + b"\0" * 4
  yield (
    "hole",
    examples.canonical(
      {**header, "centroids": {**tensor, "data_offsets": [4, 52]}}, body
    ),
  )
  yield (
    "other dtype",
    examples.canonical(
      {**header, "centroids": {**tensor, "dtype": "I32"}}, body
    ),
  )
  yield (
    "unknown dtype",
    examples.canonical(
      {**header, "centroids": {**tensor, "dtype": ["F32"]}}, body
    ),
  )
  for shape in ([4], [4, 4], [3, 4, 1], [-4, -3], [2**62, 3], [4.0, 3], "43"):
    yield (
      f"shape {shape}",
      examples.canonical(
        {**header, "centroids": {**tensor, "shape": shape}}, body
      ),
    )
  yield "metadata", examples.canonical({**header, "__metadata__": "x"}, body)
  yield (
    "text",
    examples.canonical({**header, "__metadata__": {"ecos_jax": 1}}, body),
  )
  yield "deep", mutants.join(b"[" * 60_000, body)
  yield (
    "deep metadata",
    examples.canonical(
      {**header, "__metadata__": {"ecos_jax": "[" * 60_000}}, body
    ),
  )
  yield "list", mutants.join([1, 2], body)
  yield "not JSON", mutants.join(b"{]", body)
  yield "not UTF-8", mutants.join(b"\xff\xfe\x00", body)
  yield "long integer", mutants.join(b'{"a":' + b"9" * 5000 + b"}", body)
  yield "empty", b""
  yield "only a length", struct.pack("<Q", 10)
  yield "huge length", struct.pack("<Q", 2**63) + b"{}"
  for number in ("NaN", "Infinity", "1e999"):
    yield number, mutants.join(text.replace(b"5.0", number.encode()), body)


@pytest.mark.parametrize(
  "data", [pytest.param(d, id=name) for name, d in _hostile_headers()]
)
def test_hostile_headers_are_refused(data):
  with pytest.raises(messages.ProtocolError):
    messages.Query.from_bytes(data)


def test_sizes_are_bounded_before_allocation():
  header, _ = examples.split(examples.QUERY.to_bytes())
  header["centroids"]["shape"] = [100_000, 600]
  header["centroids"]["data_offsets"] = [0, 240_000_000]
  data = examples.canonical(header, b"\0" * 48)
  tracemalloc.start()
  try:
    with pytest.raises(messages.ProtocolError, match="length"):
      messages.Query.from_bytes(data)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 100_000


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


def test_a_large_message_is_written_with_one_copy_of_its_arrays():
  message = messages.Model(
    weights=np.ones(2**21, np.float32),
    network="convnet",
    classes=2,
    image_size=28,
    layout=64 * "0",
  )
  tracemalloc.start()
  try:
    assert len(message.to_bytes()) > 2**23
    assert tracemalloc.get_traced_memory()[1] < 1.3 * 2**23
  finally:
    tracemalloc.stop()


def test_files_are_read_within_limits(tmp_path, monkeypatch):
  path = tmp_path / "query.safetensors"
  path.write_bytes(b"second")
  assert wire.read_file(path) == b"second"
  monkeypatch.setattr(wire, "MAX_BYTES", 5)
  with pytest.raises(messages.ProtocolError, match="exceeds"):
    wire.read_file(path)
  for missing in (tmp_path / "nothing", tmp_path):
    with pytest.raises(errors.EcosError, match="not a file"):
      wire.read_file(missing)

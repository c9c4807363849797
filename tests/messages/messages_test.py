import dataclasses
import json
import math
import random
import struct
import tracemalloc

import numpy as np
import pytest
from safetensors import numpy as safetensors

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.config import limits
from ecos_jax.messages import wire
from tests.messages import mutants

TERMS = messages.Terms(5.0, 0.8, 1e-5, "add_remove")
LABEL_TERMS = messages.LabelTerms(
  10, 300, 75.0, 25.0, 180.0, 0.15, 1e-5, "add_remove"
)
STATEMENT = messages.Statement(5.0, 0.8, 1e-5, "add_remove", 0.61, True)
ENCODER = {
  "encoder_name": "hog",
  "encoder_settings": {"cell": 8, "norm": "L2", "scale": 0.5},
  "encoder_digest": "ab" * 32,
}
MESSAGES = (
  messages.Query(
    np.arange(12, dtype=np.float32).reshape(4, 3), terms=TERMS, **ENCODER
  ),
  messages.Response(np.array([3, -1, 40, 2]), "cd" * 32, STATEMENT),
  messages.Query(
    np.arange(6, dtype=np.float16).reshape(2, 3),
    directions=np.arange(12, dtype=np.float32).reshape(4, 3),
    mean=np.arange(3, dtype=np.float32),
    votes=2,
    classes=5,
    weight=3,
    terms=TERMS,
    **ENCODER,
  ),
  messages.Response(
    np.array([30, -1]),
    "cd" * 32,
    dataclasses.replace(STATEMENT, bins=3, weight=3),
    np.arange(-10, 15).reshape(5, 5),
  ),
  messages.LabelRequest(
    np.ones((5, 3), np.float32), terms=LABEL_TERMS, **ENCODER
  ),
  messages.LabelResponse(
    np.array([0, 9, -1], np.int32),
    "ef" * 32,
    LABEL_TERMS,
    answers=2,
    considered=2,
    epsilon=4.0,
    private=True,
  ),
)
QUERY, RESPONSE, BOTH, SUMS, _, LABEL_RESPONSE = MESSAGES
KINDS = [type(message).__name__ for message in MESSAGES]


def _split(data):
  (length,) = struct.unpack_from("<Q", data)
  return json.loads(data[8 : 8 + length]), data[8 + length :]


def _canonical(header, body):
  """Returns the bytes as this package would write that header."""
  text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
  return mutants.join(text + b" " * (-len(text) % 8), body)


def _with_fields(message, **changes):
  """Returns the bytes of a message with other fields in its metadata."""
  header, body = _split(message.to_bytes())
  fields = json.loads(header["__metadata__"]["ecos_jax"])
  for name, value in changes.items():
    fields[name] = value
    if value is ...:
      del fields[name]
  header["__metadata__"]["ecos_jax"] = json.dumps(
    fields, sort_keys=True, separators=(",", ":")
  )
  return _canonical(header, body)


@pytest.mark.parametrize("message", MESSAGES, ids=KINDS)
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


@pytest.mark.parametrize("message", MESSAGES, ids=KINDS)
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


def test_terms_and_statements_say_the_unit():
  for message, name in (
    (QUERY, "terms"),
    (RESPONSE, "statement"),
    (LABEL_RESPONSE, "terms"),
  ):
    assert getattr(message, name).unit == "sample"
    terms = dataclasses.replace(getattr(message, name), unit="person")
    other = dataclasses.replace(message, **{name: terms})
    received = type(message).from_bytes(other.to_bytes())
    assert getattr(received, name).unit == "person"
    for wrong in ("household", ..., 1):
      with pytest.raises(messages.ProtocolError, match="unit"):
        type(message).from_bytes(_with_fields(message, unit=wrong))
  with pytest.raises(messages.ProtocolError, match=r"version must be 3.*newer"):
    messages.Query.from_bytes(_with_fields(QUERY, version=2))


@pytest.mark.parametrize("message", MESSAGES, ids=KINDS)
def test_other_kinds_are_refused(message):
  for other in MESSAGES:
    if type(other) is not type(message):
      with pytest.raises(messages.ProtocolError):
        type(message).from_bytes(other.to_bytes())


def test_a_message_does_not_change_with_the_array_it_was_made_of():
  centroids = np.zeros((2, 3), np.float32)
  query = dataclasses.replace(QUERY, centroids=centroids)
  centroids[0, 0] = 1
  assert query.centroids[0, 0] == 0
  with pytest.raises(ValueError, match="read-only"):
    query.centroids[0, 0] = 1


@pytest.mark.parametrize(
  "centroids",
  [
    np.zeros((2, 3)),
    np.zeros(3, np.float32),
    np.zeros((0, 3), np.float32),
    np.zeros((2, 0), np.float32),
    np.zeros((2, limits.MAX_DIMENSION + 1), np.float32),
    np.zeros((limits.MAX_CENTROIDS + 1, 1), np.float32),
    np.array([[np.nan]], np.float32),
    np.array([[np.inf]], np.float32),
    np.array([[np.inf]], np.float16),
    [[1.0]],
  ],
)
def test_centroids_are_checked(centroids):
  with pytest.raises(messages.ProtocolError, match="centroids"):
    dataclasses.replace(QUERY, centroids=centroids)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_and_centroids_are_of_two_bytes_or_four(dtype):
  numbers = np.arange(6, dtype=dtype).reshape(2, 3) / 8
  query = dataclasses.replace(QUERY, centroids=numbers)
  received = messages.Query.from_bytes(query.to_bytes()).centroids
  assert received.dtype == dtype
  np.testing.assert_array_equal(received, numbers)


def test_the_limits_of_size_include_the_largest():
  largest = np.zeros((limits.MAX_CENTROIDS, 2), np.float32)
  dataclasses.replace(QUERY, centroids=largest)
  huge = np.broadcast_to(np.float32(0), (50_000, 8192))
  with pytest.raises(messages.ProtocolError, match="smaller than"):
    dataclasses.replace(QUERY, centroids=huge)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("encoder_name", "hog\x1b[2J"),
    ("encoder_name", ""),
    ("encoder_name", "h" * 129),
    ("encoder_name", 3),
    ("encoder_digest", "AB" * 32),
    ("encoder_digest", "ab" * 31),
    ("encoder_settings", []),
    ("encoder_settings", {"cell": None}),
    ("encoder_settings", {"cell": True}),
    ("encoder_settings", {"cell": 2**60}),
    ("encoder_settings", {"norm": "\n"}),
    ("encoder_settings", {"a b": 1}),
    ("encoder_settings", {str(i): i for i in range(65)}),
    ("sigma", "5"),
    ("sigma", True),
    ("sigma", 0),
    ("sigma", 10**400),
    ("gamma", 1.5),
    ("delta", 0.5),
    ("relation", "bounded"),
    ("relation", []),
    ("version", 1),
    ("kind", "response"),
    ("sigma", ...),
    ("encoder_digest", ...),
    ("surprise", 1),
  ],
)
def test_fields_of_a_query_are_checked(field, value):
  with pytest.raises(messages.ProtocolError) as refusal:
    messages.Query.from_bytes(_with_fields(QUERY, **{field: value}))
  assert field in str(refusal.value) or "unknown field" in str(refusal.value)
  assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("query_digest", "x"),
    ("mechanism", "laplace"),
    ("epsilon", -1.0),
    ("epsilon", 1e7),
    ("private", 1),
    ("private", ...),
  ],
)
def test_fields_of_a_response_are_checked(field, value):
  with pytest.raises(messages.ProtocolError, match=field):
    messages.Response.from_bytes(_with_fields(RESPONSE, **{field: value}))


def test_scores_beyond_the_stated_noise_are_refused():
  for score in (-60, limits.MAX_SAMPLES + 60):
    dataclasses.replace(RESPONSE, scores=np.array([score]))
  for score in (-61, limits.MAX_SAMPLES + 61):
    with pytest.raises(messages.ProtocolError, match="scores"):
      dataclasses.replace(RESPONSE, scores=np.array([score]))


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"centroids": None, "weight": 0}, None),
    ({"classes": 0}, None),
    ({"votes": 4}, None),
    ({"centroids": None}, "weight"),
    ({"weight": 0}, "weight"),
    ({"weight": 33}, "weight"),
    ({"votes": 0}, "votes"),
    ({"votes": 5}, "votes"),
    ({"mean": None}, "mean"),
    ({"mean": np.zeros(2, np.float32)}, "mean"),
    ({"mean": np.array([0, 0, np.nan], np.float32)}, "mean"),
    ({"mean": np.zeros((1, 3), np.float32)}, "mean"),
    ({"directions": None}, "directions"),
    ({"directions": np.full((4, 3), np.inf, np.float32)}, "directions"),
    ({"directions": np.zeros((1025, 3), np.float32)}, "directions"),
    ({"directions": np.zeros((4, 2), np.float32)}, "mean"),
    ({"centroids": np.zeros((4, 2), np.float32)}, "centroids"),
    ({"centroids": None, "directions": None}, "centroids or directions"),
    ({"classes": -1}, "classes"),
    ({"classes": 2**19}, "classes"),
    ({"terms": dataclasses.replace(TERMS, relation="replace_one")}, "relation"),
    (
      {"weight": 32, "terms": dataclasses.replace(TERMS, sigma=256.0)},
      "sigma",
    ),
  ],
)
def test_the_parts_of_a_question_must_fit_together(changes, match):
  if match is None:
    dataclasses.replace(BOTH, **changes)
  else:
    with pytest.raises(messages.ProtocolError, match=match):
      dataclasses.replace(BOTH, **changes)


def test_a_question_may_not_ask_for_endless_sums():
  directions = np.zeros((1024, 3), np.float32)
  dataclasses.replace(BOTH, directions=directions, classes=1000)
  with pytest.raises(messages.ProtocolError, match="classes times"):
    dataclasses.replace(BOTH, directions=directions, classes=1024)


def test_sums_beyond_the_stated_noise_are_refused():
  span = math.ceil(12 * 5.0 * 12**0.5)
  most = limits.MAX_SAMPLES + span
  for row in ([most, -most, -span], [-most, 0, most]):
    dataclasses.replace(SUMS, sums=np.array([row]))
  for row in ([most + 1, 0, 0], [0, -most - 1, 0], [0, 0, -span - 1]):
    with pytest.raises(messages.ProtocolError, match="sums"):
      dataclasses.replace(SUMS, sums=np.array([row]))
  with pytest.raises(messages.ProtocolError, match="scores or sums"):
    dataclasses.replace(SUMS, sums=None, scores=None)


def test_labels_must_be_classes_or_abstentions():
  for label in (-2, 10):
    with pytest.raises(messages.ProtocolError, match="labels"):
      dataclasses.replace(LABEL_RESPONSE, labels=np.array([label], np.int32))


def test_a_relation_may_come_from_the_configuration():
  relation = config.Relation.REPLACE_ONE
  assert messages.Terms(5, 1, 1e-5, relation).relation == "replace_one"


def _hostile_headers():
  header, body = _split(QUERY.to_bytes())
  text = QUERY.to_bytes()[8 : -len(body)].rstrip()
  tensor = header["centroids"]
  yield (
    "duplicate field",
    mutants.join(
      text[:-1] + b',"centroids":' + json.dumps(tensor).encode() + b"}", body
    ),
  )
  yield "more space", mutants.join(text + b" " * 64, body)
  yield "other order", mutants.join(dict(reversed(header.items())), body)
  yield "second tensor", _canonical({**header, "z": tensor}, body)
  yield "bytes behind", QUERY.to_bytes() + b"\0" * 4
  yield (
    "hole",
    _canonical(
      {**header, "centroids": {**tensor, "data_offsets": [4, 52]}}, body
    ),
  )
  yield (
    "other dtype",
    _canonical({**header, "centroids": {**tensor, "dtype": "I32"}}, body),
  )
  yield (
    "unknown dtype",
    _canonical({**header, "centroids": {**tensor, "dtype": ["F32"]}}, body),
  )
  for shape in ([4], [4, 4], [3, 4, 1], [-4, -3], [2**62, 3], [4.0, 3], "43"):
    yield (
      f"shape {shape}",
      _canonical({**header, "centroids": {**tensor, "shape": shape}}, body),
    )
  yield "metadata", _canonical({**header, "__metadata__": "x"}, body)
  yield "text", _canonical({**header, "__metadata__": {"ecos_jax": 1}}, body)
  yield "deep", mutants.join(b"[" * 60_000, body)
  yield (
    "deep metadata",
    _canonical({**header, "__metadata__": {"ecos_jax": "[" * 60_000}}, body),
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
  header, _ = _split(QUERY.to_bytes())
  header["centroids"]["shape"] = [100_000, 600]
  header["centroids"]["data_offsets"] = [0, 240_000_000]
  data = _canonical(header, b"\0" * 48)
  tracemalloc.start()
  try:
    with pytest.raises(messages.ProtocolError, match="length"):
      messages.Query.from_bytes(data)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 100_000


@pytest.mark.parametrize("message", MESSAGES, ids=KINDS)
def test_ten_thousand_mutated_messages_are_refused_or_whole(message):
  rng = random.Random(20)
  data = message.to_bytes()
  others = [other.to_bytes() for other in MESSAGES]
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


def test_requests_times_classes_are_bounded():
  """Each is a count that the client draws noise for."""
  request = next(m for m in MESSAGES if isinstance(m, messages.LabelRequest))
  terms = dataclasses.replace(request.terms, classes=100_000)
  rows = np.zeros((1001, 1), np.float16)
  few = dataclasses.replace(request, features=rows[:1000], terms=terms)
  assert messages.LabelRequest.from_bytes(few.to_bytes()).terms == terms
  with pytest.raises(
    messages.ProtocolError, match="1,001 requests for 100,000"
  ):
    dataclasses.replace(request, features=rows, terms=terms)

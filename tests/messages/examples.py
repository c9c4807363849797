"""Messages of each kind for tests, and how to forge them."""

import dataclasses
import json
import struct

import numpy as np

from ecos_jax import messages
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


def split(data):
  (length,) = struct.unpack_from("<Q", data)
  return json.loads(data[8 : 8 + length]), data[8 + length :]


def canonical(header, body):
  """Returns the bytes as this package would write that header."""
  text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
  return mutants.join(text + b" " * (-len(text) % 8), body)


def with_fields(message, **changes):
  """Returns the bytes of a message with other fields in its metadata."""
  header, body = split(message.to_bytes())
  fields = json.loads(header["__metadata__"]["ecos_jax"])
  for name, value in changes.items():
    fields[name] = value
    if value is ...:
      del fields[name]
  header["__metadata__"]["ecos_jax"] = json.dumps(
    fields, sort_keys=True, separators=(",", ":")
  )
  return canonical(header, body)

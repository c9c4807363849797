"""Damaged copies of messages."""

import json
import struct


def join(header, body):
  """Returns a safetensors file of a header, bytes or JSON, and a body."""
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(header)) + header + body


def mutate(data, others, rng):
  """Returns a damaged copy of a message."""
  kind = rng.randrange(8)
  buffer = bytearray(data)
  if kind == 0:
    for _ in range(rng.randint(1, 8)):
      buffer[rng.randrange(len(buffer))] ^= 1 << rng.randrange(8)
  elif kind == 1:
    del buffer[rng.randrange(len(buffer)) :]
  elif kind == 2:
    at = rng.randrange(len(buffer))
    buffer[at:at] = rng.randbytes(rng.randint(1, 40))
  elif kind == 3:
    other = rng.choice(others)
    at, to = rng.randrange(len(buffer)), rng.randrange(len(other))
    buffer[at:] = other[to:]
  elif kind == 4:
    buffer = bytearray(rng.randbytes(rng.randint(0, 300)))
  elif kind == 5:
    buffer[:8] = struct.pack("<Q", rng.randrange(2 ** rng.randint(1, 64)))
  else:
    # A value of the JSON is replaced by one from elsewhere.
    values = ["NaN", "1e999", "-1", "0", "null", "{}", "[[]]", "9" * 20]
    (length,) = struct.unpack_from("<Q", data)
    text = data[8 : 8 + length].decode()
    parts = text.replace('\\"', "\0").split(",")
    at = rng.randrange(len(parts))
    key, colon, _ = parts[at].rpartition(":")
    parts[at] = key + colon + rng.choice([*values, rng.choice(parts)])
    text = ",".join(parts).replace("\0", '\\"')
    return join(text.encode(), data[8 + length :])
  return bytes(buffer)

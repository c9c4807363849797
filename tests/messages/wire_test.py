import json
import struct
import tracemalloc

import pytest

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.messages import wire
from tests.messages import examples
from tests.messages import mutants


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

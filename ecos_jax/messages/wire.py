"""The bytes of a message: a JSON header and one or a few arrays.

The format is that of safetensors. All sizes are checked before anything of that
size is allocated.
"""

from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
import struct
from typing import Any

import numpy as np

from ecos_jax import errors

VERSION = 3
# The client holds a message in memory a few times: 64 Mi numbers of 4 bytes.
MAX_BYTES = 2**28
MAX_HEADER_BYTES = 2**16


class ProtocolError(errors.EcosError):
  """A message or one of its fields is refused; the text says which and why."""


def narrowed(array: np.ndarray) -> np.ndarray:
  """Returns an array as float16 if that loses nothing, else as float32."""
  wide = array.astype(np.float32, copy=False)
  with np.errstate(over="ignore"):
    narrow = wide.astype(np.float16)
  return narrow if np.array_equal(narrow, wide) else wide


def _refuse_constant(text: str) -> None:
  raise ValueError(f"{text} is not a number of JSON")


def _parse_json(data: bytes | str, field: str) -> Any:
  try:
    return json.loads(data, parse_constant=_refuse_constant)
  # RecursionError: brackets nested thousands deep.
  except (ValueError, RecursionError) as error:
    raise ProtocolError(f"{field} is not valid JSON") from error


def _dump_json(value: object) -> str:
  return json.dumps(
    value, sort_keys=True, separators=(",", ":"), allow_nan=False
  )


_DTYPES = {
  "F16": np.float16,
  "F32": np.float32,
  "I32": np.int32,
  "I64": np.int64,
}
_DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def pack(kind: str, fields: Mapping, arrays: Mapping[str, np.ndarray]) -> bytes:
  """Returns the one safetensors encoding of a message."""
  fields = {"kind": kind, "version": VERSION, **fields}
  header: dict[str, Any] = {"__metadata__": {"ecos_jax": _dump_json(fields)}}
  end = 0
  for name, array in arrays.items():
    start, end = end, end + array.nbytes
    header[name] = {
      "dtype": _DTYPE_NAMES[array.dtype],
      "shape": array.shape,
      "data_offsets": [start, end],
    }
  text = _dump_json(header).encode()
  # Padded, so that the array is aligned in a file that is mapped.
  text += b" " * (-len(text) % 8)
  if len(text) > MAX_HEADER_BYTES:
    raise ProtocolError(f"the header exceeds {MAX_HEADER_BYTES} bytes")
  if len(text) + end > MAX_BYTES:
    raise ProtocolError(f"the {kind} exceeds {MAX_BYTES} bytes")
  # One copy of the arrays, which may be most of the memory.
  body = (np.ascontiguousarray(array).data for array in arrays.values())
  return b"".join((struct.pack("<Q", len(text)), text, *body))


def unpack(
  data: bytes, kind: str, names: Sequence[str]
) -> tuple[dict, dict[str, np.ndarray]]:
  """Returns the fields and the arrays of a message, unchecked.

  The message that is made of them checks the values, and that its encoding is
  these very bytes.

  Args:
    data: The message.
    kind: Its kind.
    names: The arrays that such a message may have, in the order of their bytes.
  """
  if not isinstance(data, bytes):
    raise ProtocolError(f"the {kind} must be bytes, got {type(data).__name__}")
  if len(data) > MAX_BYTES:
    raise ProtocolError(f"the {kind} exceeds {MAX_BYTES} bytes")
  if len(data) < 8:
    raise ProtocolError(f"the {kind} is cut off")
  (length,) = struct.unpack_from("<Q", data)
  if length > min(MAX_HEADER_BYTES, len(data) - 8):
    raise ProtocolError(f"the {kind} is cut off, or its header length is wrong")
  header = _parse_json(data[8 : 8 + length], "the header")
  try:
    text = header.pop("__metadata__")["ecos_jax"]
    described = {
      name: (header[name]["dtype"], header[name]["shape"])
      for name in names
      if name in header
    }
  except (AttributeError, KeyError, TypeError) as error:
    raise ProtocolError(
      f"this is not a {kind} of ecos_jax: its header is another"
    ) from error
  fields = _parse_json(text, "the metadata") if isinstance(text, str) else None
  if not isinstance(fields, dict) or fields.pop("kind", None) != kind:
    raise ProtocolError(f"kind must be {kind}: this is another message")
  if fields.pop("version", None) != VERSION:
    raise ProtocolError(
      f"version must be {VERSION}: cloud and client need ecos_jax of the same "
      "protocol version; install the newer one on both"
    )
  body = memoryview(data)[8 + length :]
  arrays, start = {}, 0
  for name, (dtype, shape) in described.items():
    if not isinstance(dtype, str) or dtype not in _DTYPES:
      raise ProtocolError(f"{name} has an unknown dtype")
    if (
      not isinstance(shape, list)
      or len(shape) > 2
      or not all(type(n) is int and 0 < n <= MAX_BYTES for n in shape)
    ):
      raise ProtocolError(f"{name} has an unknown shape")
    end = start + math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if end > len(body):
      raise ProtocolError(
        f"{name} does not have the length that its shape says"
      )
    numbers = np.frombuffer(body[start:end], _DTYPES[dtype])
    arrays[name] = numbers.reshape(shape)
    start = end
  if start != len(body):
    raise ProtocolError(f"the {kind} does not have the length of its arrays")
  return fields, arrays


def read_file(path: Path) -> bytes:
  """Returns the bytes of a message file, without reading more than allowed.

  Raises:
    ProtocolError: There is no such file, it cannot be read, or it is too large
      for a message.
  """
  try:
    with path.open("rb") as file:
      data = file.read(MAX_BYTES + 1)
  except (FileNotFoundError, IsADirectoryError) as error:
    raise ProtocolError(f"{path} is not a file") from error
  except OSError as error:
    raise ProtocolError(f"{path} cannot be read: {error.strerror}") from error
  if len(data) > MAX_BYTES:
    raise ProtocolError(
      f"{path} exceeds {MAX_BYTES} bytes: no message is so large"
    )
  return data

"""The bytes of a message: a JSON header and one array.

The format is that of safetensors. All sizes are checked before anything of that
size is allocated.
"""

from collections.abc import Mapping
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


def pack(kind: str, fields: Mapping, name: str, array: np.ndarray) -> bytes:
  """Returns the one safetensors encoding of a message."""
  fields = {"kind": kind, "version": VERSION, **fields}
  header = _dump_json(
    {
      "__metadata__": {"ecos_jax": _dump_json(fields)},
      name: {
        "dtype": _DTYPE_NAMES[array.dtype],
        "shape": array.shape,
        "data_offsets": [0, array.nbytes],
      },
    }
  ).encode()
  # Padded, so that the array is aligned in a file that is mapped.
  header += b" " * (-len(header) % 8)
  if len(header) > MAX_HEADER_BYTES:
    raise ProtocolError(f"the header exceeds {MAX_HEADER_BYTES} bytes")
  return struct.pack("<Q", len(header)) + header + array.tobytes()


def unpack(data: bytes, kind: str, name: str) -> tuple[dict, np.ndarray]:
  """Returns the fields and the array of a message, unchecked.

  The message that is made of them checks the values, and that its encoding is
  these very bytes.
  """
  if len(data) > MAX_BYTES:
    raise ProtocolError(f"the {kind} exceeds {MAX_BYTES} bytes")
  if len(data) < 8:
    raise ProtocolError(f"the {kind} is cut off")
  (length,) = struct.unpack_from("<Q", data)
  if length > min(MAX_HEADER_BYTES, len(data) - 8):
    raise ProtocolError(f"the {kind} is cut off, or its header length is wrong")
  header = _parse_json(data[8 : 8 + length], "the header")
  try:
    text = header["__metadata__"]["ecos_jax"]
    dtype, shape = header[name]["dtype"], header[name]["shape"]
  except (KeyError, TypeError) as error:
    raise ProtocolError(
      f"this is not a {kind} of ecos_jax: its header lacks ecos_jax or {name}"
    ) from error
  fields = _parse_json(text, "the metadata") if isinstance(text, str) else None
  if not isinstance(fields, dict) or fields.pop("kind", None) != kind:
    raise ProtocolError(f"kind must be {kind}: this is another message")
  version = fields.pop("version", None)
  if version != VERSION:
    raise ProtocolError(
      f"version must be {VERSION}: cloud and client need ecos_jax of the same "
      "protocol version; install the newer one on both"
    )
  if not isinstance(dtype, str) or dtype not in _DTYPES:
    raise ProtocolError(f"{name} has an unknown dtype")
  if (
    not isinstance(shape, list)
    or len(shape) > 2
    or not all(type(n) is int and 0 < n <= MAX_BYTES for n in shape)
  ):
    raise ProtocolError(f"{name} has an unknown shape")
  body = memoryview(data)[8 + length :]
  if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != len(body):
    raise ProtocolError(f"{name} does not have the length that its shape says")
  return fields, np.frombuffer(body, _DTYPES[dtype]).reshape(shape)


def read_file(path: Path) -> bytes:
  """Returns the bytes of a message file, without reading more than allowed.

  Raises:
    ProtocolError: There is no such file, or it is too large for a message.
  """
  try:
    with path.open("rb") as file:
      data = file.read(MAX_BYTES + 1)
  except (FileNotFoundError, IsADirectoryError) as error:
    raise ProtocolError(f"{path} is not a file") from error
  if len(data) > MAX_BYTES:
    raise ProtocolError(
      f"{path} exceeds {MAX_BYTES} bytes: no message is so large"
    )
  return data

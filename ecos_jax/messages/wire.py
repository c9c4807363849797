"""The bytes of a message: a JSON header and one array, and checks of both.

The format is that of safetensors. A message has exactly one valid encoding, and
all sizes are checked before anything of that size is allocated.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
from pathlib import Path
import re
import struct
from typing import Any

import numpy as np

from ecos_jax import errors
from ecos_jax import files

VERSION = 2
# The client holds a message in memory a few times: 64 Mi numbers of 4 bytes.
MAX_BYTES = 2**28
MAX_HEADER_BYTES = 2**16


class ProtocolError(errors.EcosError):
  """A message, or a term in one, that is refused; says which field and why."""


def number(value: object, field: str, low: float, high: float) -> float:
  """Returns `value` as a float in [low, high]."""
  if isinstance(value, bool) or not isinstance(
    value, int | float | np.integer | np.floating
  ):
    raise ProtocolError(f"{field} must be a number")
  # Compared before the conversion, which a huge integer would overflow.
  if not low <= value <= high:
    raise ProtocolError(f"{field} must be in [{low:g}, {high:g}]")
  return float(value)


def integer(value: object, field: str, low: int, high: int) -> int:
  """Returns `value`, an integer in [low, high]."""
  if isinstance(value, bool) or not isinstance(value, int | np.integer):
    raise ProtocolError(f"{field} must be an integer")
  if not low <= value <= high:
    raise ProtocolError(f"{field} must be in [{low}, {high}]")
  return int(value)


def match(value: object, field: str, pattern: re.Pattern[str]) -> str:
  """Returns `value`, text that matches the whole pattern."""
  if not isinstance(value, str) or not pattern.fullmatch(value):
    raise ProtocolError(f"{field} must be text that matches {pattern.pattern}")
  return value


def boolean(value: object, field: str) -> bool:
  """Returns `value`, true or false."""
  if not isinstance(value, bool):
    raise ProtocolError(f"{field} must be true or false")
  return value


def array(
  value: object, field: str, dtypes: tuple[type, ...], limits: tuple
) -> np.ndarray:
  """Returns a read-only copy of an array with 1 to `limits` of each axis."""
  if not isinstance(value, np.ndarray) or value.dtype not in dtypes:
    names = " or ".join(np.dtype(dtype).name for dtype in dtypes)
    raise ProtocolError(f"{field} must be a {names} array")
  if value.ndim != len(limits) or not all(
    1 <= size <= limit for size, limit in zip(value.shape, limits, strict=True)
  ):
    raise ProtocolError(
      f"{field} must have {len(limits)} axes of 1 to {limits}, got "
      f"{list(value.shape)}"
    )
  if value.nbytes + MAX_HEADER_BYTES > MAX_BYTES:
    raise ProtocolError(f"{field} must be smaller than {MAX_BYTES} bytes")
  if value.dtype.kind == "f" and not np.isfinite(value).all():
    raise ProtocolError(f"{field} must be finite: it holds NaN or infinity")
  value = np.array(value, order="C")
  value.flags.writeable = False
  return value


def narrowed(array: np.ndarray) -> np.ndarray:
  """Returns an array as float16 if that loses nothing, else as float32."""
  wide = array.astype(np.float32, copy=False)
  with np.errstate(over="ignore"):
    narrow = wide.astype(np.float16)
  return narrow if np.array_equal(narrow, wide) else wide


def normalise(message: object, **fields: object) -> None:
  """Sets fields of a frozen dataclass to their normal form."""
  for name, value in fields.items():
    object.__setattr__(message, name, value)


def _refuse_constant(text: str) -> None:
  raise ValueError(f"{text} is no number of JSON")


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
  """Returns the fields and the array of a message that is still to be checked.

  Only what is needed to reach them is checked here. The message made of them
  checks the values, and `check_canonical` that nothing else was in the bytes.
  """
  if len(data) > MAX_BYTES:
    raise ProtocolError(f"the {kind} exceeds {MAX_BYTES} bytes")
  if len(data) < 8:
    raise ProtocolError(f"the {kind} is cut off")
  (length,) = struct.unpack_from("<Q", data)
  if length > min(MAX_HEADER_BYTES, len(data) - 8):
    raise ProtocolError(f"the {kind} is cut off, or its header length lies")
  header = _parse_json(data[8 : 8 + length], "the header")
  try:
    text = header["__metadata__"]["ecos_jax"]
    dtype, shape = header[name]["dtype"], header[name]["shape"]
  except (KeyError, TypeError) as error:
    raise ProtocolError(
      f"this is no {kind} of ecos_jax: the header lacks ecos_jax or {name}"
    ) from error
  fields = _parse_json(text, "the metadata") if isinstance(text, str) else None
  if not isinstance(fields, dict) or fields.pop("kind", None) != kind:
    raise ProtocolError(f"kind must be {kind}: this is another message")
  version = fields.pop("version", None)
  if version != VERSION:
    raise ProtocolError(
      f"version must be {VERSION}: cloud and client need ecos_jax of the same "
      "protocol version"
    )
  if not isinstance(dtype, str) or dtype not in _DTYPES:
    raise ProtocolError(f"{name} has an unknown dtype")
  if not isinstance(shape, list) or len(shape) > 2:
    raise ProtocolError(f"{name} has an unknown shape")
  shape = [integer(n, f"the shape of {name}", 1, MAX_BYTES) for n in shape]
  body = memoryview(data)[8 + length :]
  if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != len(body):
    raise ProtocolError(f"{name} does not have the length that its shape says")
  return fields, np.frombuffer(body, _DTYPES[dtype]).reshape(shape)


def take(fields: dict, cls: type, **given: object) -> Any:
  """Returns a `cls` of `given` and of its fields taken out of `fields`."""
  names = {field.name for field in dataclasses.fields(cls)} - set(given)
  missing = names - set(fields)
  if missing:
    raise ProtocolError(f"missing field {', '.join(sorted(missing))}")
  return cls(**given, **{name: fields.pop(name) for name in names})


def check_canonical(message: Any, fields: dict, data: bytes) -> None:
  """Refuses bytes that hold anything beside the message."""
  if fields:
    raise ProtocolError(f"{len(fields)} unknown fields")
  if message.to_bytes() != data:
    raise ProtocolError(
      "the bytes are not the canonical encoding of their content: duplicate "
      "or hidden fields"
    )


def digest(message: Any) -> str:
  """Returns the sha256 (hex) of the bytes of a message."""
  return files.digest(message.to_bytes())


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
    raise ProtocolError(f"{path} exceeds {MAX_BYTES} bytes: no message is so")
  return data

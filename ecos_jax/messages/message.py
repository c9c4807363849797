"""What all messages share: the encoding, the digest, and questions' encoder."""

import dataclasses
import functools
import re
from typing import Annotated, Any, ClassVar, Self

from ecos_jax import files
from ecos_jax.messages import fields
from ecos_jax.messages import wire

Digest = Annotated[str, fields.text(re.compile(r"[0-9a-f]{64}"))]
Id = Annotated[str, fields.text(re.compile(r"[0-9a-f]{32}"))]

_NAME = fields.text(re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}"))
_TEXT = fields.text(re.compile(r"[ -~]{0,256}"))
_INTEGER = fields.integer(-(2**53), 2**53)
_NUMBER = fields.number(-1e300, 1e300)
_MAX_SETTINGS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Message(fields.Checked):
  """A frozen dataclass of arrays and fields that has exactly one encoding.

  The fields of its terms or statement stand beside its own in the header.

  Attributes:
    KIND: Name of the kind of message.
    ARRAYS: Names of the fields that are arrays, in the order of their bytes.
      One that is None is not sent.
  """

  KIND: ClassVar[str]
  ARRAYS: ClassVar[tuple[str, ...]]

  def to_bytes(self) -> bytes:
    """Returns the message as a safetensors file."""
    header: dict[str, Any] = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if dataclasses.is_dataclass(field.type):
        header |= dataclasses.asdict(value)
      elif field.name not in self.ARRAYS:
        header[field.name] = value
    arrays = {name: getattr(self, name) for name in self.ARRAYS}
    sent = {name: a for name, a in arrays.items() if a is not None}
    return wire.pack(self.KIND, header, sent)

  @classmethod
  def from_bytes(cls, data: bytes) -> Self:
    """Returns the message in `data`.

    Raises:
      ProtocolError: `data` is anything but one valid message of this kind.
    """
    header, arrays = wire.unpack(data, cls.KIND, cls.ARRAYS)
    own: dict[str, Any] = {name: arrays.get(name) for name in cls.ARRAYS}
    for field in dataclasses.fields(cls):
      if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
        own[field.name] = _take(header, field.type)
    message = _take(header, cls, **own)
    if header:
      raise wire.ProtocolError(f"{len(header)} unknown fields")
    if message.to_bytes() != data:
      raise wire.ProtocolError(
        "the bytes are not the canonical encoding of their content: duplicate "
        "or hidden fields"
      )
    return message

  @functools.cached_property
  def digest(self) -> str:
    """Returns the sha256 (hex) of the bytes."""
    return files.digest(self.to_bytes())


def _take(header: dict[str, Any], cls: type, **given: Any) -> Any:
  """Returns a `cls` of `given` and of fields that it takes out of `header`."""
  names = {field.name for field in dataclasses.fields(cls)} - set(given)
  missing = names - set(header)
  if missing:
    raise wire.ProtocolError(f"missing field {', '.join(sorted(missing))}")
  return cls(**given, **{name: header.pop(name) for name in names})


def _settings(value: object, field: str) -> dict[str, int | float | str]:
  if not isinstance(value, dict) or len(value) > _MAX_SETTINGS:
    raise wire.ProtocolError(
      f"{field} must be at most {_MAX_SETTINGS} named values"
    )
  for name, setting in value.items():
    _NAME(name, f"a name in {field}")
    check = _NUMBER
    if isinstance(setting, str | int):
      check = _TEXT if isinstance(setting, str) else _INTEGER
    check(setting, f"{field}.{name}")
  return dict(value)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Question(Message):
  """What the cloud sends: rows of features, and the encoder that made them.

  Attributes:
    encoder_name: Name of the public encoder.
    encoder_settings: Its settings.
    encoder_digest: sha256 (hex) of its name, settings and weights.
  """

  encoder_name: Annotated[str, _NAME]
  encoder_settings: Annotated[dict[str, int | float | str], _settings]
  encoder_digest: Digest

  @property
  def dimension(self) -> int:
    """Returns d, the length of the encoder's features."""
    arrays = (getattr(self, name) for name in self.ARRAYS)
    return next(rows.shape[1] for rows in arrays if rows is not None)

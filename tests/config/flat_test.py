import dataclasses
import enum

from ecos_jax.config import flat


class _Colour(enum.Enum):
  RED = "red"


@dataclasses.dataclass
class _Inner:
  colour: _Colour = _Colour.RED
  sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass
class _Outer:
  seed: int = 3
  name: str | None = None
  inner: _Inner = dataclasses.field(default_factory=_Inner)


def test_fields_have_dotted_names_and_values_of_json():
  leaves = {
    "seed": 3,
    "name": None,
    "inner.colour": "red",
    "inner.sizes": [1, 2],
  }
  assert flat.flatten(_Outer()) == leaves
  assert flat.flatten({"seed": 3, "name": None, "inner": _Inner()}) == leaves
  assert flat.flatten(_Inner(), "x.") == {"x.colour": "red", "x.sizes": [1, 2]}

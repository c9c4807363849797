"""The encoder: a map from images to features, and its identity."""

from collections.abc import Callable
import dataclasses
import json
from typing import NamedTuple

from ecos_jax import files

Settings = dict[str, int | float | str]


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A public map from images to features.

  Attributes:
    name: One of `registry.names()`, or `module:function`.
    image_size: Images are [b, image_size, image_size, 3] uint8.
    dimension: d, the length of a feature.
    settings: Everything that determines the output; `weights` is a digest.
    digest: sha256 (hex) over name and settings.
    apply: uint8 [b, image_size, image_size, 3] -> float32 [b, d]; can be
      jitted. Weights are arguments of a `jax.tree_util.Partial`.
    source: Where the weights come from.
    licence: The licence of the weights; empty if it is not known.
  """

  name: str
  image_size: int
  dimension: int
  settings: Settings
  digest: str
  apply: Callable
  source: str = ""
  licence: str = ""

  @property
  def message_settings(self) -> Settings:
    """Returns what a query says about the encoder: settings and source."""
    return self.settings | ({"source": self.source} if self.source else {})


class ArgumentNames(NamedTuple):
  """The arguments that errors about an encoder name."""

  name: str = "`encoder.name`"
  image_size: str = "`encoder.image_size`"
  weights: str = "`encoder.weights`"
  dtype: str = "`encoder.dtype`"


def digest(name: str, settings: Settings) -> str:
  """Returns the digest of an encoder."""
  text = json.dumps([name, settings], sort_keys=True)
  return files.digest(text.encode())

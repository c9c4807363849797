"""The private samples as features, made with the encoder that a message names.

Cloud and client must have the very same encoder; a digest of its settings and
weights says whether they do.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import probing
from ecos_jax.config import limits
from ecos_jax.data import features as feature_files
from ecos_jax.data import pools
from ecos_jax.encoders import encode
from ecos_jax.encoders import registry
from ecos_jax.privacy import units

# Features, float [n, d] of any array library, or images: uint8 [n, h, w, 3] or
# a source.
Data = np.ndarray | pools.Source

CALLED = registry.ArgumentNames(
  name="`encoder`",
  image_size="encoder_settings.image_size",
  weights="`weights`",
)


@dataclasses.dataclass(frozen=True)
class Private:
  """The private samples, opened: they are counted, and not encoded yet.

  Attributes:
    size: Number of samples.
    blocks: Encodes them, in one or more blocks [b, d].
    labels: [n] integers, their classes; None where nobody asks.
    persons: [n] integers or strings, whose they are; None if each sample is a
      unit of its own.
  """

  size: int
  blocks: Callable[[], Iterable[np.ndarray]]
  labels: np.ndarray | None = None
  persons: np.ndarray | None = None

  def __post_init__(self):
    """Checks that the arrays have an element for each sample.

    Raises:
      EcosError: One does not. The text has no count: the number is private.
    """
    labels, persons = self.labels, self.persons
    if labels is not None and (
      labels.shape != (self.size,) or labels.dtype.kind not in "iu"
    ):
      raise errors.EcosError(
        "`labels` must be [n] integers, one for each sample"
      )
    if persons is not None:
      units.check(persons)
      if persons.shape != (self.size,):
        raise errors.EcosError("`persons` must be [n], an id for each sample")

  def features(self) -> np.ndarray:
    """Returns the features of all samples, [n, d]."""
    return np.concatenate(list(self.blocks()))

  def by_person(self) -> units.Persons | None:
    """Returns the samples by person, where persons are the units."""
    return None if self.persons is None else units.Persons(self.persons)


def opened(
  message: messages.Query | messages.LabelRequest,
  data: Data,
  encoder: registry.Encoder | None = None,
  batch_size: int = 1024,
  *,
  labels: np.ndarray | None = None,
  persons: np.ndarray | None = None,
) -> Private:
  """Returns the private samples, which are encoded when they are read.

  Args:
    message: From the cloud.
    data: The private samples.
    encoder: As in `encoder_of`.
    batch_size: Images to read and encode at once; fewer if they are large.
    labels: As in `Private`; needed for a question about classes.
    persons: As in `Private`.

  Raises:
    EcosError: There are no labels where they are needed, or an array does not
      fit the samples. When they are read: an image cannot be, the encoder is
      not the one installed here or mixes samples, or d differs.
  """
  if message.classes and labels is None:
    raise errors.EcosError(
      "the question is about the samples of each class: give `labels`"
    )
  if not hasattr(data, "images"):
    data = _array(message, data)
  blocks = functools.partial(_blocks, message, data, encoder, batch_size)
  return Private(len(data), blocks, labels, persons)


def _array(message: messages.Question, data: Data) -> np.ndarray:
  """Returns images, or features that fit the question.

  Raises:
    EcosError: They do not. The text has no count: the number is private.
  """
  with contextlib.suppress(ValueError):  # rows of different lengths
    array, d = np.asarray(data), message.dimension
    images = array.dtype == np.uint8
    real = array.dtype.kind in "iub" or jnp.issubdtype(array.dtype, np.floating)
    if array.ndim > 2 if images else real and array.shape[1:] == (d,):
      return array
  raise errors.EcosError(
    f"`data` must be images, uint8 [n, h, w, 3], or features, numbers [n, "
    f"{message.dimension}] as the question's"
  )


def _blocks(
  message: messages.Question,
  data: Data,
  encoder: registry.Encoder | None,
  batch_size: int,
) -> Iterator[np.ndarray]:
  """Yields the features of all samples; see `opened`."""
  if isinstance(data, np.ndarray):
    if data.dtype != np.uint8:
      yield data
      return
    data = pools.ArraySource("`data`", data)
  if not isinstance(data, feature_files.FeatureSource):
    encoder = encoder_of(message, encoder)
    batch_size = probing.batch_size(encoder, batch_size)
    probing.seconds(encoder, batch_size)
  elif data.dimension != message.dimension:
    raise errors.EcosError(
      f"`data` must hold features [n, {message.dimension}], as the query's"
    )
  if not len(data):
    yield np.zeros((0, message.dimension), np.float32)
  for start in range(0, len(data), batch_size):
    rows = np.arange(start, min(start + batch_size, len(data)))
    yield encode.of_rows(data, rows, encoder, batch_size)


def encoder_of(
  message: messages.Question,
  encoder: registry.Encoder | None = None,
  weights: str | None = None,
) -> registry.Encoder:
  """Returns the message's encoder, as this installation has it.

  The message can only choose a known name, a size and a type: it cannot make
  the client run code, open a file or fetch one.

  Args:
    message: From the cloud; not trusted.
    encoder: The client's own encoder, which must be the message's.
    weights: The client's own file of weights, as in `registry.get`.

  Raises:
    EcosError: The encoder here differs, or the message's features are not that
      encoder's.
  """
  if encoder is None:
    encoder = _built(message, weights)
  encoder = registry.on_ground(encoder, ground_of(message))
  if encoder.digest != message.encoder_digest:
    raise messages.ProtocolError(_difference(message, encoder))
  if encoder.dimension != message.dimension:
    raise messages.ProtocolError(
      f"the {message.KIND} has d = {message.dimension}, the encoder "
      f"{encoder.name} has d = {encoder.dimension}"
    )
  return encoder


def ground_of(message: messages.Question) -> str:
  """Returns the colour on which the cloud lays transparent images.

  Raises:
    ProtocolError: It is none of those that are known.
  """
  ground = message.encoder_settings.get("ground", config.Ground.WHITE.value)
  if ground not in (known := [member.value for member in config.Ground]):
    raise messages.ProtocolError(
      f"encoder_settings.ground must be one of {', '.join(known)}"
    )
  return str(ground)


def _built(message: messages.Question, weights: str | None) -> registry.Encoder:
  """Returns the encoder with the message's name and settings."""
  name, settings = message.encoder_name, message.encoder_settings
  if name not in registry.names():
    raise messages.ProtocolError(
      f"encoder_name: unknown encoder {name}; it must be one of "
      f"{', '.join(registry.names())}, or `encoder` must be your own"
    )
  options = {}
  if name in registry.PRETRAINED:
    size, dtype = settings.get("image_size"), settings.get("dtype")
    if type(size) is not int or not 0 < size <= limits.MAX_IMAGE_SIZE:
      raise messages.ProtocolError(
        "encoder_settings.image_size must be an integer in [1, "
        f"{limits.MAX_IMAGE_SIZE}]"
      )
    if dtype not in (known := [member.value for member in config.ComputeType]):
      raise messages.ProtocolError(
        f"encoder_settings.dtype must be one of {', '.join(known)}"
      )
    if weights is None and name not in registry.INSTALLED:
      raise messages.ProtocolError(
        f"the cloud encodes with {name} and the weights "
        f"{settings.get('source')}: give them as `weights`"
      )
    options = {"image_size": size, "dtype": dtype}
  return registry.get(name, weights=weights, called=CALLED, **options)


def _difference(message: messages.Question, encoder: registry.Encoder) -> str:
  """Returns how the message's encoder differs from the one here."""
  name, settings = message.encoder_name, message.encoder_settings
  if name != encoder.name:
    return f"encoder_name: the cloud has {name}, `encoder` is {encoder.name}"
  wanted, here = (s.get("weights") for s in (settings, encoder.settings))
  if wanted != here:
    return (
      f"encoder_digest: the cloud encodes with {name} and the weights {wanted} "
      f"({settings.get('source')}), those of {encoder.source} are {here}: give "
      "the same as `weights`"
    )
  return (
    f"encoder_digest: the encoder {name} of the cloud differs from the one "
    "installed here: cloud and client need the same ecos_jax"
  )

"""Which encoder the client's images go through: the one that a message names.

Cloud and client must have the very same; a digest of its settings and weights
says whether they do.
"""

from absl import flags

from ecos_jax import config
from ecos_jax import messages
from ecos_jax.config import limits
from ecos_jax.encoders import registry

_FLAGS = registry.Flags(
  name="--encoder",
  image_size="encoder_settings.image_size",
  weights="--weights",
)


def encoder_of(
  message: messages.Query | messages.LabelRequest,
  encoder: registry.Encoder | None = None,
  weights: str | None = None,
) -> registry.Encoder:
  """Returns the message's encoder, if this installation has the very same.

  Of the message only a name that is known here, a size and a type are followed:
  it cannot make the client run code, open a file or fetch one.

  Args:
    message: From the cloud; not trusted.
    encoder: The client's own, which the message's must be.
    weights: The client's own file of weights, as in `registry.get`.

  Raises:
    EcosError: It has not, or the message's features are not that encoder's.
  """
  if encoder is None:
    encoder = _built(message, weights)
  if encoder.digest != message.encoder_digest:
    raise messages.ProtocolError(_difference(message, encoder))
  query = isinstance(message, messages.Query)
  d = (message.centroids if query else message.features).shape[1]
  if encoder.dimension != d:
    raise messages.ProtocolError(
      f"{'centroids' if query else 'features'} have d = {d}, the encoder "
      f"{encoder.name} has d = {encoder.dimension}"
    )
  return encoder


def _built(
  message: messages.Query | messages.LabelRequest, weights: str | None
) -> registry.Encoder:
  """Returns the encoder of that name and those settings, as it is here."""
  name, settings = message.encoder_name, message.encoder_settings
  if name not in registry.names():
    raise messages.ProtocolError(
      f"encoder_name: unknown encoder {name}; the one of the cloud must be one "
      f"of {', '.join(registry.names())}, or --encoder must name your own"
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
        f"the cloud encodes by {name} with the weights "
        f"{settings.get('source')}: give them as --weights"
      )
    options = {"image_size": size, "dtype": dtype}
  return registry.get(name, weights=weights, flags=_FLAGS, **options)


def _difference(
  message: messages.Query | messages.LabelRequest, encoder: registry.Encoder
) -> str:
  """Returns how the message's encoder differs from the one here."""
  name, settings = message.encoder_name, message.encoder_settings
  if name != encoder.name:
    return f"encoder_name: the cloud has {name}, --encoder is {encoder.name}"
  wanted, here = (s.get("weights") for s in (settings, encoder.settings))
  if wanted != here:
    return (
      f"encoder_digest: the cloud encodes by {name} with the weights {wanted} "
      f"({settings.get('source')}), those of {encoder.source} are {here}: give "
      "the same as --weights"
    )
  return (
    f"encoder_digest: the encoder {name} of the cloud differs from the one "
    "installed here: cloud and client need the same ecos_jax"
  )


def own_encoder() -> registry.Encoder | None:
  """Returns the encoder that the flag --encoder names, if it does.

  Raises:
    EcosError: It cannot be loaded.
  """
  name = flags.FLAGS.encoder
  return None if name is None else registry.get(name, flags=_FLAGS)

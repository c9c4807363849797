"""The request to the client for labels, and its answer, on the cloud's side."""

import numpy as np

from ecos_jax import messages
from ecos_jax.encoders import registry
from ecos_jax.messages import wire


def request(
  features: np.ndarray,
  encoder: registry.Encoder,
  terms: messages.LabelTerms,
) -> messages.LabelRequest:
  """Returns the request for the labels of some samples.

  The client stops when its budget ends: put the samples that matter most first,
  or all in random order.

  Args:
    features: float16 or float32 [m, d], of public samples.
    encoder: What made the features.
    terms: What to propose to the client.

  Raises:
    ProtocolError: The features exceed the limits or are not finite.
  """
  return messages.LabelRequest(
    features=wire.narrowed(features),
    encoder_name=encoder.name,
    encoder_settings=encoder.message_settings,
    encoder_digest=encoder.digest,
    terms=terms,
  )


def read(data: bytes, request: messages.LabelRequest) -> messages.LabelResponse:
  """Returns the labels in `data`, which a client may have forged.

  Raises:
    ProtocolError: It is no valid response, or one to another request.
  """
  response = messages.LabelResponse.from_bytes(data)
  if response.request_digest != request.digest:
    raise messages.ProtocolError(
      f"the labels answer request {response.request_digest[:12]}, not "
      f"{request.digest[:12]}: ask the client to label the request of this run"
    )
  if len(response.labels) != len(request.features):
    raise messages.ProtocolError(
      f"there are {len(response.labels)} labels for {len(request.features)} "
      "requests"
    )
  if response.terms.classes != request.terms.classes:
    raise messages.ProtocolError(
      f"classes is {response.terms.classes} in the labels, "
      f"{request.terms.classes} in the request"
    )
  return response

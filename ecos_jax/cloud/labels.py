"""Labels of the pool's samples by the client, on the cloud's side.

Either the client is asked about each sample (`request`, `read`), or the signed
votes of each class, which the answer to a query holds, say it (`posterior`).
"""

import jax
import numpy as np

from ecos_jax import messages
from ecos_jax.cloud import directions as directions_lib
from ecos_jax.clustering import chunks
from ecos_jax.encoders import registry
from ecos_jax.messages import wire

# A mean vote is about two thirds of the mean coordinate, whose variance within
# a class is below 1. Both factors are as measured on Digits.
_MEAN_PER_VOTE = 1.5
_PENALTY = 0.75


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


def posterior(
  features: chunks.Features,
  indices: np.ndarray,
  directions: directions_lib.Directions,
  sums: np.ndarray,
  scale: float,
  key: jax.Array,
) -> np.ndarray:
  """Returns the probability of each class for samples, float64 [b, K].

  It is that of a linear discriminant. With z the whitened coordinates of a
  sample, n_k the voters of class k, and w_k their mean votes, shrunk to those
  of all classes as far as noise explains the difference:

      log P(k) = 1.5 w_k . z - 0.75 |w_k|^2 + log n_k, up to a constant

  Args:
    features: [N, d], the pool.
    indices: int64 [b], rows of the pool.
    directions: What the client voted on.
    sums: int64 [K, p + 1], the noisy sums of votes by class, and the noisy
      number of voters of each.
    scale: Scale of the noise in each number.
    key: Random key, of the samples that stand for the pool.
  """
  # Fewer voters than this are lost in the noise, whatever they voted.
  voters = np.maximum(sums[:, -1:], max(scale, 1.0))
  means = sums[:, :-1] / voters
  common = (means * voters).sum(axis=0) / voters.sum()
  gaps, noise = means - common, (scale / voters) ** 2
  signal = np.maximum((gaps**2).mean(axis=1, keepdims=True) - noise, 0)
  means = common + gaps * signal / (signal + noise)
  rows = directions_lib.sample(features.shape[0], key)
  pool = directions_lib.coordinates(chunks.take(features, rows), *directions)
  deviations = np.maximum(np.asarray(pool).std(axis=0), np.finfo("f4").tiny)
  found = directions_lib.coordinates(
    chunks.take(features, indices), *directions
  )
  logs = _MEAN_PER_VOTE * (np.asarray(found) / deviations) @ means.T
  logs += np.log(voters.T) - _PENALTY * (means**2).sum(axis=1)
  logs -= logs.max(axis=1, keepdims=True)
  odds = np.exp(logs)
  return odds / odds.sum(axis=1, keepdims=True)

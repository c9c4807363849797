"""Labels of the pool's samples by the client, on the cloud's side.

Either the client is asked about each sample (`request`, `read`), or the signed
votes of each class, which the answer to a query holds, say it (`fit`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
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


class Discriminant(NamedTuple):
  """The probability of each class at a sample, by a linear discriminant.

  With z the whitened coordinates of a sample:

      log P(k) = 1.5 means_k . z - 0.75 |means_k|^2 + log voters_k + constant

  Attributes:
    directions: What the client voted on.
    deviations: float32 [p], of the pool's coordinates.
    means: float64 [K, p], mean votes of each class.
    voters: float64 [K], the number of voters of each class, positive.
  """

  directions: directions_lib.Directions
  deviations: np.ndarray
  means: np.ndarray
  voters: np.ndarray

  def posterior(self, features: np.ndarray | jax.Array) -> np.ndarray:
    """Returns the probability of each class, float64 [n, K].

    Args:
      features: float32 [n, d].
    """
    found = directions_lib.coordinates(features, *self.directions)
    logs = _MEAN_PER_VOTE * (np.asarray(found) / self.deviations) @ self.means.T
    logs += np.log(self.voters) - _PENALTY * (self.means**2).sum(axis=1)
    logs -= logs.max(axis=1, keepdims=True)
    odds = np.exp(logs)
    return odds / odds.sum(axis=1, keepdims=True)

  def classify(self, features: chunks.Features) -> np.ndarray:
    """Returns the likeliest class of every sample, int32 [N].

    Args:
      features: [N, d], the pool.
    """
    mesh = chunks.single_device_mesh()
    rows, _ = chunks.plan(features.shape, len(self.deviations), mesh)
    result = np.empty(features.shape[0], np.int32)
    for start, valid, chunk in chunks.read(features, rows, mesh):
      odds = self.posterior(chunk.astype(jnp.float32))[:valid]
      result[start : start + valid] = odds.argmax(axis=1)
    return result


def fit(
  features: chunks.Features,
  directions: directions_lib.Directions,
  sums: np.ndarray,
  scale: float,
  key: jax.Array,
) -> Discriminant:
  """Returns the discriminant of the classes, from the noisy votes of each.

  The mean votes of a class are shrunk to those of all classes as far as noise
  explains the difference.

  Args:
    features: [N, d], the pool.
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
  return Discriminant(directions, deviations, means, voters[:, 0])

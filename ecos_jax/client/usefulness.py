"""What the owner of the data is told if an answer would be little but noise.

These texts depend on the number of private samples. They are for the owner's
own screen, and nothing in them leaves the client; numbers are rounded.
"""

import math

import numpy as np

from ecos_jax import messages
from ecos_jax.client import encoding
from ecos_jax.config import limits
from ecos_jax.privacy import accounting
from ecos_jax.privacy import mechanisms

# More than answer any query.
_MOST_CLIENTS = 10_000


def of_scores(
  query: messages.Query,
  mechanism: mechanisms.Mechanism,
  data: encoding.Private,
) -> str:
  """Returns a warning if most counts would drown in their noise, or "".

  That is, if a count gets fewer votes on average than the scale of its noise.

  Args:
    query: From the cloud.
    mechanism: What would be drawn.
    data: The private data.
  """
  terms = mechanism.terms
  voters = terms.gamma * _units(data, np.ones(data.size, np.bool_))
  if not voters:
    return f"warning  there is no {terms.unit}: the answer would be noise alone"
  votes = []
  if query.centroids is not None:
    votes.append(max(query.weight, 1) * voters / len(query.centroids))
  if query.directions is not None:
    rows, columns = query.sums
    if query.classes:
      known = _known(data, query.classes)
      voters = terms.gamma * _units(data, known)
    votes.append(query.votes * voters / (rows * (columns - 1)))
  share = max(votes) / mechanism.scale
  if share >= 1:
    return ""

  def price(sigma: float, gamma: float) -> str:
    rest = terms.delta, terms.relation, mechanism.bins, mechanism.weight
    return f"(epsilon {accounting.epsilon(sigma, gamma, *rest):.2g})"

  advice = []
  if share * terms.sigma >= limits.MIN_SIGMA:
    enough = _rounded_down(share * terms.sigma)
    told = price(enough, terms.gamma)
    advice.append(f"a sigma of {enough:g} {told} would do")
  if terms.gamma / share <= 1:
    enough = math.ceil(100 * terms.gamma / share) / 100
    told = price(terms.sigma, enough)
    advice.append(f"a gamma of {enough:g} {told} would do")
  # Votes add up with the clients, and noise with the root of their number.
  if (answers := math.ceil(share**-2)) <= _MOST_CLIENTS:
    advice.append(
      f"the sum of {answers:,} answers of clients like you would do"
    )
  if query.centroids is not None:
    # Votes on directions are as many with fewer centroids.
    most = votes[0] * len(query.centroids) / mechanism.scale
    if most >= 2:
      most = int(_rounded_down(most))
      advice.append(f"the cloud could ask about {most} centroids or fewer")
  return (
    f"warning  most counts would drown: on average a count has fewer votes of "
    f"your {terms.unit}s than its noise has scale; "
    + (", or ".join(advice) or "these data are too few for this question")
  )


def of_labels(terms: messages.LabelTerms, data: encoding.Private) -> str:
  """Returns a warning if hardly a request can reach the threshold, or "".

  Args:
    terms: What the client decided.
    data: The private data, with labels.
  """
  known = _known(data, terms.classes)
  if not known.any():
    return (
      "warning  no sample has a label that is a class, so all labels would be "
      "noise alone: give an .npz with images and labels, a folder with folders "
      "0, 1, ... or with those that `classes` names, or a TFDS dataset with "
      "labels"
    )
  if min(terms.neighbours, terms.gamma * _units(data, known)) < terms.threshold:
    return (
      f"warning  a request has fewer votes of your {terms.unit}s than the "
      f"threshold {terms.threshold:g}, so noise decides what is labelled: "
      "lower the threshold, or raise gamma or k"
    )
  return ""


def _known(data: encoding.Private, classes: int) -> np.ndarray:
  """Returns which samples have a label that is a class, [n] bool."""
  assert data.labels is not None
  return (data.labels >= 0) & (data.labels < classes)


def _units(data: encoding.Private, voting: np.ndarray) -> int:
  """Returns the number of units with a sample that is in `voting`, [n] bool."""
  if data.persons is None:
    return int(np.count_nonzero(voting))
  return len(np.unique(data.persons[voting]))


def _rounded_down(x: float) -> float:
  """Returns a positive number with two significant digits, no larger."""
  unit = 10.0 ** (math.floor(math.log10(x)) - 1)
  return math.floor(x / unit) * unit

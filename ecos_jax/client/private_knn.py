"""Private-kNN labels: the vote of the nearest private samples, with noise.

Private-kNN (Zhu et al., CVPR 2020): on each request vote the k nearest private
samples of a random subsample. If the largest number of votes, with noise on it,
reaches a threshold, the votes of a second subsample are counted, and the class
with the most leaves, after noise on every count. Otherwise the client abstains:
the label is -1.

How many requests will be answered is random, but what they cost must not be.
So before the data are opened the client works out how many answers the budget
allows, pays for that many, and stops when they are used up; the requests after
that are -1 too. docs/privacy.md says why. The second subsample is there for the
same reason: one subsample for both would cost more than is claimed.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

import dp_accounting
import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import encoding
from ecos_jax.client import neighbours
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.privacy import accounting
from ecos_jax.privacy import mechanisms

_SCREEN, _VOTE = 0, 1


class RefusedError(errors.EcosError):
  """The budget does not allow one answer; nothing was spent."""


class Samples(NamedTuple):
  """Who votes: features [n, d], made with the request's encoder, labels [n]."""

  features: np.ndarray
  labels: np.ndarray


Data = pools.Source | Samples


@dataclasses.dataclass(frozen=True)
class Labeller:
  """Private-kNN for a number of requests and answers that is fixed beforehand.

  Attributes:
    terms: What the client decided.
    requests: How many are screened at most.
    answers: How many are voted on at most.
    insecure_noise_seed: As in `mechanisms.Mechanism`.
  """

  terms: messages.LabelTerms
  requests: int
  answers: int
  insecure_noise_seed: int | None = None

  def __post_init__(self):
    """Refuses the relation for which nothing is proven."""
    if self.terms.relation != config.Relation.ADD_REMOVE.value:
      raise errors.EcosError(
        "labels are private for the relation add_remove only: propose that one"
      )

  @property
  def cost(self) -> accounting.Cost:
    """Returns the cost of the labels, however many are given."""
    return accounting.labels(self.terms, self.requests, self.answers)

  def mechanism(self, step: int, start: int) -> mechanisms.Mechanism:
    """Returns what draws a step, `_SCREEN` or `_VOTE`, of a block.

    Args:
      step: Decides the noise.
      start: The block's first request. With a seed, draws differ by block.
    """
    terms, seed = self.terms, self.insecure_noise_seed
    if seed is not None:
      words = np.random.SeedSequence([seed, step, start]).generate_state(2)
      seed = int(words[0]) << 32 | int(words[1])
    sigma = terms.sigma_vote if step == _VOTE else terms.sigma_screen
    return mechanisms.Mechanism(
      messages.Terms(sigma, terms.gamma, terms.delta, terms.relation), seed
    )


def _affordable(
  epsilon: Callable[[int], float],
  budget: float,
  terms: messages.LabelTerms,
  most: int,
) -> int:
  """Returns a number of answers that costs at most the budget.

  The largest, or up to 1 % less; 0 if not even one is affordable.

  Args:
    epsilon: What a number of answers costs; takes seconds.
    budget: The most it may cost.
    terms: Of the answers.
    most: No more than so many.
  """
  # Written so that a budget of NaN affords nothing.
  if not budget > 0:
    return 0

  def strength(spent: float) -> float:
    """Returns 1 / sigma^2 of a Gaussian that costs as much."""
    return dp_accounting.get_sigma_gaussian(min(spent, 1e4), terms.delta) ** -2

  # The strength of many answers is about so much times their number.
  each = terms.gamma**2 * math.expm1(2 / terms.sigma_vote**2)
  at = min(int(strength(budget) / each) + 1, most)
  low, high = 0, most + 1
  while high - low > max(1, low // 100):
    spent = epsilon(at)
    low, high = (at, high) if spent <= budget else (low, at)
    step = max(1, low // 200)
    guess = at + int((strength(budget) - strength(spent)) / each)
    at = min(max(guess, low + step), high - step)
  return low


def plan(
  terms: messages.LabelTerms,
  requests: int,
  *,
  epsilon: float | None,
  composed: Callable[[accounting.Cost | None], float] | None = None,
  max_epsilon: float | None = None,
  insecure_noise_seed: int | None = None,
) -> Labeller:
  """Returns the labeller with as many answers as the budgets allow.

  It depends on nothing private: not on the data, and of the past only on costs,
  which were fixed likewise.

  Args:
    terms: What the client decided.
    requests: How many labels are asked for.
    epsilon: The most that these labels may cost; None for no limit.
    composed: What a cost comes to with all that was spent before; None costs
      nothing.
    max_epsilon: The most that this may be; None for no limit.
    insecure_noise_seed: As in `Labeller`.

  Raises:
    RefusedError: Not one answer is affordable.
  """

  def alone(cost: accounting.Cost | None) -> float:
    return cost.epsilon(terms.delta, terms.relation) if cost else 0.0

  answers = requests
  for flag, budget, total in (
    ("epsilon", epsilon, alone),
    ("max_epsilon", max_epsilon, composed),
  ):
    if budget is not None and total is not None:

      def priced(
        answers: int, total: Callable[[accounting.Cost], float] = total
      ) -> float:
        return total(accounting.labels(terms, requests, answers))

      answers = _affordable(priced, budget, terms, answers)
      if not answers:
        spent = total(None)
        before = f"{spent:.6g} was spent before, and " if spent else ""
        raise RefusedError(
          f"refused: --{flag}={budget:g} is not enough: {before}with "
          f"{requests:,} requests screened and one answered it would be "
          f"{priced(1):.6g}; nothing was spent now: send fewer requests, or "
          "give more noise or a larger budget"
        )
  return Labeller(terms, requests, answers, insecure_noise_seed)


def encode(
  request: messages.LabelRequest,
  data: Data,
  batch_size: int,
  encoder: registry.Encoder | None = None,
) -> Samples:
  """Returns the samples that can vote: those whose label is a class.

  Args:
    request: From the cloud.
    data: Images with labels, or features with labels.
    batch_size: Images to read and encode at once.
    encoder: As in `encoding.encoder_of`.

  Raises:
    EcosError: No sample has a label, d differs, or the encoder is not the one
      installed here.
  """
  d = request.features.shape[1]
  if isinstance(data, Samples):
    features, labels = data
    if features.ndim != 2 or features.shape[1] != d:
      raise errors.EcosError(f"features must be [n, {d}], as the request's")
  else:
    encoder = encoding.encoder_of(request, encoder)
    labels = data.labels(np.arange(len(data)))
    features = np.empty((len(data), d), np.float32)
    for start in range(0, len(data), batch_size):
      indices = np.arange(start, min(start + batch_size, len(data)))
      images = data.images(indices, encoder.image_size)
      features[indices] = registry.encode(encoder, images, batch_size)
  known = (labels >= 0) & (labels < request.terms.classes)
  if not known.any():
    raise errors.EcosError(
      f"--data: no sample has a label in [0, {request.terms.classes - 1}], so "
      "none can vote: give an .npz with images and labels, a folder with "
      "folders 0, 1, ... or with those that --classes names, or a TFDS dataset "
      "with labels"
    )
  return Samples(features[known], labels[known])


def label(
  request_bytes: bytes,
  data: Data,
  labeller: Labeller,
  *,
  encoder: registry.Encoder | None = None,
  batch_size: int = 1024,
) -> bytes:
  """Returns the labels of a request, as bytes, for one spend of the labeller.

  Args:
    request_bytes: From the cloud; not trusted.
    data: Images with labels, or features with labels.
    labeller: What the client decided; for as many requests as there are.
    encoder: As in `encoding.encoder_of`.
    batch_size: Images to read and encode at once.

  Raises:
    EcosError: The request is refused, or the data do not fit it.
  """
  request = messages.LabelRequest.from_bytes(request_bytes)
  m, terms = len(request.features), labeller.terms
  if (m, request.terms.classes) != (labeller.requests, terms.classes):
    raise errors.EcosError("the labeller was planned for another request")
  samples = encode(request, data, batch_size, encoder)
  voters = neighbours.Neighbours(
    *samples, k=terms.neighbours, classes=terms.classes
  )

  def noised(step: int, start: int, rows: np.ndarray) -> np.ndarray:
    """Returns what may be looked at: the largest count, or all counts."""
    mechanism = labeller.mechanism(step, start)
    taken = mechanism.subsample(len(rows) * len(voters))
    counts = voters.votes(request.features[rows], taken.reshape(len(rows), -1))
    return mechanism.noised(counts.max(1) if step == _SCREEN else counts)

  labels = np.full(m, -1, np.int32)
  left, considered = labeller.answers, m
  for start in range(0, m, voters.rows):
    rows = np.arange(start, min(start + voters.rows, m))
    passed = rows[noised(_SCREEN, start, rows) >= terms.threshold][:left]
    if not len(passed):
      continue
    labels[passed] = noised(_VOTE, start, passed).argmax(1)
    left -= len(passed)
    if not left:
      considered = int(passed[-1]) + 1
      break
  response = messages.LabelResponse(
    labels=labels,
    request_digest=request.digest,
    terms=terms,
    answers=labeller.answers,
    considered=considered,
    epsilon=labeller.cost.epsilon(terms.delta, terms.relation),
    private=labeller.insecure_noise_seed is None,
  )
  return response.to_bytes()

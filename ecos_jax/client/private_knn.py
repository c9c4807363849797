"""Private-kNN labels: the vote of the nearest private samples, with noise.

Private-kNN (Zhu et al., CVPR 2020): the k nearest private samples in a random
subsample vote on each request (of persons, in a subsample that has one random
sample of each). If the largest number of votes, with noise,
reaches a threshold, a second subsample votes: noise is added to the count of
each class, and the label is the class with the largest. Otherwise the client
abstains: the label is -1.

The number of requests that will be answered is random, but their cost must not
be. So before the data are opened the client computes how many answers the
budget allows. Their cost is spent however many are given, and after the last
one all labels are -1. One subsample for both steps would cost more than is
claimed. docs/privacy.md has the reasons.
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
from ecos_jax.clustering import centring
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms
from ecos_jax.privacy import units

_SCREEN, _VOTE = 0, 1


class Samples(NamedTuple):
  """Private samples that can vote.

  Attributes:
    features: [n, d], made with the request's encoder.
    labels: [n] integers, their classes, each in 0..C - 1.
    persons: [n] integers or strings, whose they are; None if each sample is a
      unit of its own.
  """

  features: np.ndarray
  labels: np.ndarray
  persons: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Labeller:
  """Private-kNN for numbers of requests and answers that are fixed beforehand.

  Attributes:
    terms: What the client decided.
    requests: Largest number of requests that are screened.
    answers: Largest number of requests that are voted on.
    insecure_noise_seed: As in `mechanisms.Mechanism`.
  """

  terms: messages.LabelTerms
  requests: int
  answers: int
  insecure_noise_seed: int | None = None

  def __post_init__(self):
    """Refuses the relation that has no proof.

    Raises:
      EcosError: The relation is not add_remove.
    """
    if self.terms.relation != config.Relation.ADD_REMOVE.value:
      raise errors.EcosError(
        "labels are private for `relation` add_remove only: propose that one"
      )

  @property
  def cost(self) -> accounting.Cost:
    """The cost of the labels, however many are given."""
    return accounting.labels(self.terms, self.requests, self.answers)

  def mechanism(self, step: int, start: int) -> mechanisms.Mechanism:
    """Returns the mechanism of a step in a block of requests.

    Args:
      step: `_SCREEN` or `_VOTE`, which differ in noise.
      start: The block's first request; with a seed, blocks draw differently.
    """
    terms, seed = self.terms, self.insecure_noise_seed
    if seed is not None:
      words = np.random.SeedSequence([seed, step, start]).generate_state(2)
      seed = int(words[0]) << 32 | int(words[1])
    sigma = terms.sigma_vote if step == _VOTE else terms.sigma_screen
    return mechanisms.Mechanism(
      messages.Terms(
        sigma, terms.gamma, terms.delta, terms.relation, unit=terms.unit
      ),
      seed,
    )


def _affordable(
  epsilon: Callable[[int], float],
  budget: float,
  terms: messages.LabelTerms,
  most: int,
) -> int:
  """Returns the largest number of answers within a budget, or up to 1 % less.

  It is 0 if the budget does not allow one answer.

  Args:
    epsilon: Returns the cost of a number of answers; it takes seconds.
    budget: The largest epsilon.
    terms: Terms of the answers.
    most: The largest number to return.
  """
  # Written so that a budget of NaN affords nothing.
  if not budget > 0:
    return 0

  def strength(spent: float) -> float:
    """Returns 1 / sigma^2 of a Gaussian mechanism that costs `spent`."""
    return dp_accounting.get_sigma_gaussian(min(spent, 1e4), terms.delta) ** -2

  # The strength of many answers is about their number times this.
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

  The number depends on nothing private: on the costs of earlier answers, which
  were fixed in the same way, and not on the data.

  Args:
    terms: What the client decided.
    requests: Number of labels that are asked for.
    epsilon: The most that these labels may cost; None for no limit.
    composed: Returns the epsilon of a cost together with all earlier answers;
      of None, that of the earlier answers.
    max_epsilon: The most that `composed` may return; None for no limit.
    insecure_noise_seed: As in `Labeller`.

  Raises:
    BudgetError: The budgets do not allow one answer.
  """

  def alone(cost: accounting.Cost | None) -> float:
    return cost.epsilon(terms.delta, terms.relation) if cost else 0.0

  answers = requests
  for name, budget, total in (
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
        raise ledger.BudgetError(
          f"refused: `{name}`={budget:g} is not enough: {before}with "
          f"{requests:,} requests screened and one answered it would be "
          f"{priced(1):.6g}; nothing was spent now: send fewer requests, or "
          "give more noise or a larger budget"
        )
  return Labeller(terms, requests, answers, insecure_noise_seed)


def voting(data: encoding.Private, classes: int) -> Samples:
  """Returns the samples that can vote, encoded: their label is a class.

  There may be none: then all labels are noise, since a refusal would show it.

  Args:
    data: With labels.
    classes: Number of classes.
  """
  assert data.labels is not None
  known = (data.labels >= 0) & (data.labels < classes)
  persons = None if data.persons is None else data.persons[known]
  return Samples(data.features()[known], data.labels[known], persons)


def label(
  request: messages.LabelRequest, samples: Samples, labeller: Labeller
) -> messages.LabelResponse:
  """Returns the labels of a request, drawn once.

  Args:
    request: From the cloud.
    samples: From `voting`.
    labeller: What the client decided, planned for this number of requests.

  Raises:
    EcosError: The labeller does not fit the request, or nothing says whose the
      samples are.
  """
  m, terms = len(request.features), labeller.terms
  if (m, request.terms.classes) != (labeller.requests, terms.classes):
    raise errors.EcosError("the labeller was planned for another request")
  voters = neighbours.Neighbours(
    samples.features,
    samples.labels,
    terms.neighbours,
    terms.classes,
    centring.offset(request.features),
  )
  persons = None
  if samples.persons is not None:
    persons = units.Persons(samples.persons)

  def noised(step: int, start: int, rows: np.ndarray) -> np.ndarray:
    """Returns what may be looked at: the largest count, or all counts."""
    mechanism = labeller.mechanism(step, start)
    taken = mechanism.voters(len(voters), persons, len(rows))
    counts = voters.votes(request.features[rows], taken)
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
  return messages.LabelResponse(
    labels=labels,
    request_digest=request.digest,
    terms=terms,
    answers=labeller.answers,
    considered=considered,
    epsilon=labeller.cost.epsilon(terms.delta, terms.relation),
    private=labeller.insecure_noise_seed is None,
  )


def outcome(requests: int, considered: int, answered: int) -> str:
  """Returns in words how many requests were labelled.

  Args:
    requests: Number of requests.
    considered: Of these, considered before the answers were used up.
    answered: Of these, labelled; the client abstained from the others.
  """
  abstained = considered - answered
  text = (
    f"{answered:,} of {requests:,} answered, {abstained:,} of {considered:,} "
    f"abstained ({100 * abstained / considered:.1f} %)"
  )
  if considered < requests:
    rest = requests - considered
    text += f", {rest:,} not considered: the budget is used up"
  return text

"""What a run has cost the client: its own answers, and all in the ledger.

>>> import numpy as np
>>> statement = messages.Statement(10, 0.8, 1e-5, "add_remove", 0.276, True)
>>> answer = messages.Response(np.array([7, -3]), 64 * "0", statement)
>>> spent({"scores": answer}, fixed=True).epsilon
0.276049
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.privacy import accounting
from ecos_jax.privacy import filter as filter_lib
from ecos_jax.privacy import ledger

Answer = messages.Response | messages.LabelResponse


@dataclasses.dataclass(frozen=True)
class Spending:
  """What the client's answers cost; None where it is unknown or not private.

  Attributes:
    epsilon: Of all answers together; 0 if there is none.
    noise_epsilon: The same, also where the noise came from a seed.
    epsilon_answers: Number of answers that `epsilon` covers.
    paper_epsilon: The paper's bound for the noise on this run's scores.
    first_epsilon: Of this run's first of two rounds of scores alone.
    scores_epsilon: Of this run's scores, or second round of scores, alone.
    labels_epsilon: Of this run's labels alone.
    delta: The smallest delta of all answers; 0 if there is none.
    relation: The relation that holds for all answers.
    unit: What epsilon hides: one `sample`, or one `person`.
  """

  epsilon: float | None
  noise_epsilon: float | None
  epsilon_answers: int
  paper_epsilon: float | None
  first_epsilon: float | None
  scores_epsilon: float | None
  labels_epsilon: float | None
  delta: float | None
  relation: str | None
  unit: str | None


def spent(
  answers: Mapping[str, Answer],
  entries: Sequence[ledger.Entry] = (),
  *,
  fixed: bool,
  exposed: bool = False,
) -> Spending:
  """Returns what this run's answers and all that the ledger holds cost.

  An answer that was deleted and asked for again is spent twice.

  Args:
    answers: This run's, by name: `first` and `scores` (responses), `labels`.
    entries: Of the client's ledger, as far as it is known. They may hold
      `answers`, which count once.
    fixed: Whether the terms of `answers` were fixed before the first one was
      given. Then they compose; see `filter.Filter` for terms that may depend on
      earlier answers.
    exposed: Whether the run also used the client's data without noise, as some
      simulations do.

  Raises:
    EcosError: No bound is proven for the answers' relations and units.
  """
  stored = [messages.answer_from_bytes(entry.response) for entry in entries]
  known = {answer.digest for answer in stored}
  own = [answer for answer in answers.values() if answer.digest not in known]
  everything = stored + own
  terms = [answer.terms for answer in everything]
  epsilon, delta, relation, unit = 0.0, 0.0, None, None
  if everything:
    unit, *others = {term.unit for term in terms}
    if others:
      raise errors.EcosError(
        "some of the client's answers hide samples and others persons, so they "
        "cannot be added up: ask for all with one `unit`"
      )
    delta = min(term.delta for term in terms)
    relation = _relation(terms)
    costs = [accounting.cost(answer) for answer in everything]
    if fixed and len(everything) == len(answers):
      epsilon = sum(costs, accounting.Cost()).epsilon(delta, relation)
    else:
      unlimited = filter_lib.Filter.of(math.inf, delta)
      epsilon = unlimited.epsilon(costs, delta, relation)
  private = not exposed and all(answer.private for answer in everything)
  alone = {
    name: accounting.alone(answer)
    for name, answer in answers.items()
    if private
  }
  paper, scores = None, answers.get("scores")
  if private and isinstance(scores, messages.Response):
    said = scores.statement
    paper = accounting.paper_epsilon(said.sigma, said.gamma, said.delta)
  return Spending(
    epsilon=epsilon if private else None,
    noise_epsilon=None if exposed else epsilon,
    epsilon_answers=len(everything),
    paper_epsilon=paper,
    first_epsilon=alone.get("first"),
    scores_epsilon=alone.get("scores"),
    labels_epsilon=alone.get("labels"),
    delta=None if exposed else delta,
    relation=relation,
    unit=unit,
  )


@dataclasses.dataclass(frozen=True)
class Clients:
  """What the answers of several clients to one query cost.

  All are None if an answer is not private.

  Attributes:
    least_epsilon: Of the client that paid least.
    most_epsilon: Of the client that paid most.
    together_epsilon: Of all answers, for a person whose samples every client
      has; None if their units differ.
  """

  least_epsilon: float | None = None
  most_epsilon: float | None = None
  together_epsilon: float | None = None


def of_clients(answers: Sequence[messages.Response]) -> Clients:
  """Returns what the answers of several clients to one query cost."""
  if not all(answer.private for answer in answers):
    return Clients()
  alone, together = list(map(accounting.alone, answers)), None
  if len({answer.terms.unit for answer in answers}) == 1:
    every = {str(i): answer for i, answer in enumerate(answers)}
    together = spent(every, fixed=True).epsilon
  return Clients(min(alone), max(alone), together)


def _relation(terms: Sequence[messages.Terms | messages.LabelTerms]) -> str:
  """Returns the weakest relation of all; labels have a bound for one only."""
  relations = {term.relation for term in terms}
  labels = any(isinstance(term, messages.LabelTerms) for term in terms)
  weaker = config.Relation.REPLACE_ONE.value
  if weaker in relations and not labels:
    return weaker
  return config.Relation.ADD_REMOVE.value

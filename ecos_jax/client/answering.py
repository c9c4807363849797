"""How a client answers, scores or labels: one procedure for both.

First the question is checked, then the budget in the ledger. Then the data are
opened and counted, and their owner is asked for consent, and told if the answer
would be little but noise. Only then are the data encoded. The answer is in the
ledger before anybody sees it. The same question at the same terms gets the
stored answer and costs nothing.

    >>> import pathlib, tempfile
    >>> random = np.random.default_rng(0)
    >>> private = random.normal(size=(500, 8))
    >>> terms = messages.Terms(10.0, 0.8, 1e-5, "add_remove")
    >>> encoder = {"encoder_name": "mine", "encoder_settings": {}}
    >>> encoder["encoder_digest"] = 64 * "0"
    >>> centroids = random.normal(size=(3, 8)).astype(np.float32)
    >>> question = messages.Query(centroids, terms, **encoder).to_bytes()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   ledger = pathlib.Path(folder, "ledger")
    ...   promised = ledger_lib.create(ledger, max_epsilon=1.0)
    ...   response = answer(question, private, sigma=10.0, ledger=ledger)
    ...   again = answer(question, private, sigma=10.0, ledger=ledger)
    >>> response == again
    True
    >>> messages.Response.from_bytes(response).scores.shape
    (3,)
"""

from collections.abc import Callable
import dataclasses
import datetime
import functools
import math
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import consent
from ecos_jax.client import coverage
from ecos_jax.client import encoding
from ecos_jax.client import private_knn
from ecos_jax.client import usefulness
from ecos_jax.messages import fields
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger as ledger_lib
from ecos_jax.privacy import mechanisms

# A constant, and not what the query proposes: its author may have seen earlier
# answers, and terms that depend on those cost more (docs/privacy.md).
GAMMA = 0.8

M = TypeVar("M", messages.Response, messages.LabelResponse)


@dataclasses.dataclass(frozen=True)
class Account:
  """What the private data may still give away.

  Attributes:
    ledger: The file with the budget of these data and all answers about them.
    name: Name of the data in the ledger.
    consent: Is told what an answer gives away and costs, and raises to stop it.
  """

  ledger: Path
  name: str = "private"
  consent: Callable[[str], None] = lambda text: None


class Answered(NamedTuple, Generic[M]):
  """An answer, which is in the ledger.

  Attributes:
    answer: What may leave the client.
    stored: When it was drawn, if that was in an earlier call; then it cost
      nothing now, and knows nothing of changes to the data since.
  """

  answer: M
  stored: str | None = None


class _Plan(NamedTuple, Generic[M]):
  """An answer that is still to be drawn.

  Attributes:
    cost: What it costs.
    text: What it gives away, for the owner of the data.
    warning: Returns why the answer would be of little use, or nothing.
    draw: Encodes the data and draws it.
  """

  cost: accounting.Cost
  text: str
  warning: Callable[[encoding.Private], str]
  draw: Callable[[encoding.Private], M]


def answer(
  question: bytes,
  data: encoding.Data,
  labels: np.ndarray | None = None,
  *,
  ledger: Path | str,
  epsilon: float | None = None,
  sigma: float | None = None,
  gamma: float = GAMMA,
  persons: np.ndarray | None = None,
  name: str = "private",
  insecure_noise_seed: int | None = None,
) -> bytes:
  """Returns the answer to a question about scores; see the example above.

  Args:
    question: The cloud's query; not trusted.
    data: The private samples: features [n, d] float, made with the question's
      encoder, or images, uint8 [n, h, w, 3] or a source.
    labels: [n] integers, the samples' classes as the cloud numbers them; needed
      for a question by class.
    ledger: The file with the budget of these data and all answers about them;
      `ecos_jax.create_ledger` makes one.
    epsilon: The most that this answer may cost, for the delta and relation of
      the ledger: it gets the least noise that keeps it.
    sigma: Instead of epsilon, the scale of the noise, in votes where a sample
      has one; see `messages.Terms`.
    gamma: Probability that a sample, or a person, takes part.
    persons: [n] integers or strings: samples with the same id are one person's.
      For a ledger whose unit is the person: of each, one random sample votes.
    name: Name of the data in the ledger.
    insecure_noise_seed: As in `mechanisms.Mechanism`: for tests and studies.

  Raises:
    EcosError: The question or a term is refused, the ledger is missing or
      damaged, its budget would be exceeded, or the data do not fit.
  """
  query = messages.Query.from_bytes(question)
  guarantee = ledger_lib.read(ledger).guarantee
  return answer_query(
    query,
    _opener(query, data, labels, persons, guarantee),
    mechanism_of(query, guarantee, epsilon, sigma, gamma, insecure_noise_seed),
    Account(Path(ledger), name),
  ).answer.to_bytes()


def label(
  question: bytes,
  data: encoding.Data,
  labels: np.ndarray,
  *,
  ledger: Path | str,
  epsilon: float,
  terms: messages.LabelTerms | None = None,
  persons: np.ndarray | None = None,
  name: str = "private",
  insecure_noise_seed: int | None = None,
) -> bytes:
  """Returns the answer to a request for labels.

  Args:
    question: The cloud's label request; not trusted.
    data: The private samples, as in `answer`.
    labels: [n] integers, the samples' classes as the cloud numbers them. A
      sample whose label is no class does not vote.
    ledger: As in `answer`.
    epsilon: The most that these labels may cost: it decides how many are given.
    terms: What to label with; None for the terms that the request proposes.
      Delta, relation and unit are the ledger's in any case.
    persons: As in `answer`.
    name: As in `answer`.
    insecure_noise_seed: As in `answer`.

  Raises:
    EcosError: The request or a term is refused, the ledger is missing or
      damaged, the budgets do not allow a single answer, or the data do not fit.
  """
  fields.number(0.0, math.inf)(epsilon, "`epsilon`")
  request = messages.LabelRequest.from_bytes(question)
  guarantee = ledger_lib.read(ledger).guarantee
  return answer_request(
    request,
    _opener(request, data, labels, persons, guarantee),
    label_terms(terms or request.terms, guarantee),
    Account(Path(ledger), name),
    epsilon=epsilon,
    insecure_noise_seed=insecure_noise_seed,
  ).answer.to_bytes()


def mechanism_of(
  query: messages.Query,
  guarantee: ledger_lib.Guarantee,
  epsilon: float | None,
  sigma: float | None,
  gamma: float,
  insecure_noise_seed: int | None = None,
) -> mechanisms.Mechanism:
  """Returns the mechanism that answers a query; see `answer`."""
  return mechanisms.Mechanism.of(
    epsilon,
    sigma,
    gamma,
    guarantee.delta,
    guarantee.relation,
    insecure_noise_seed,
    query.bins,
    query.weight,
    unit=guarantee.unit,
  )


def label_terms(
  terms: messages.LabelTerms, fixed: ledger_lib.Guarantee
) -> messages.LabelTerms:
  """Returns terms with the delta, the relation and the unit of a ledger."""
  return dataclasses.replace(
    terms, delta=fixed.delta, relation=fixed.relation, unit=fixed.unit
  )


def _opener(
  message: messages.Query | messages.LabelRequest,
  data: encoding.Data,
  labels: np.ndarray | None,
  persons: np.ndarray | None,
  guarantee: ledger_lib.Guarantee,
) -> Callable[[], encoding.Private]:
  """Returns what opens the data; arguments as of `answer`.

  Raises:
    EcosError: `persons` is given, and the ledger hides samples; or not, and it
      hides persons.
  """
  if (persons is None) != (guarantee.unit == config.Unit.SAMPLE.value):
    raise errors.EcosError(
      f"`persons` must be given if the ledger hides persons, and only then: "
      f"this one is for {guarantee}"
    )
  return functools.partial(
    encoding.opened,
    message,
    data,
    labels=None if labels is None else np.asarray(labels),
    persons=None if persons is None else np.asarray(persons),
  )


def answer_query(
  query: messages.Query,
  data: Callable[[], encoding.Private],
  mechanism: mechanisms.Mechanism,
  account: Account,
) -> Answered[messages.Response]:
  """Returns the response to a query.

  Args:
    query: From the cloud.
    data: Opens the data, with labels for a question by class. Called if the
      budget allows the answer; they are encoded after consent.
    mechanism: Draws the subsample and the noise, for the query's votes.
    account: The ledger and the consent.

  Raises:
    EcosError: As in `answer`.
  """

  def plan(book: ledger_lib.Ledger) -> _Plan[messages.Response]:
    def draw(private: encoding.Private) -> messages.Response:
      response = coverage.respond(
        query,
        private.blocks(),
        mechanism,
        private.labels if query.classes else None,
        private.by_person(),
      )
      return dataclasses.replace(response, client=book.client(query.digest))

    return _Plan(
      mechanism.cost,
      consent.scores(query, mechanism),
      lambda private: usefulness.of_scores(query, mechanism, private),
      draw,
    )

  return _settle(
    query,
    mechanism.terms,
    {"insecure_noise_seed": mechanism.insecure_noise_seed},
    plan,
    data,
    account,
    messages.Response,
  )


def answer_request(
  request: messages.LabelRequest,
  data: Callable[[], encoding.Private],
  terms: messages.LabelTerms,
  account: Account,
  *,
  epsilon: float | None,
  insecure_noise_seed: int | None = None,
) -> Answered[messages.LabelResponse]:
  """Returns the response to a label request.

  Args:
    request: From the cloud.
    data: As in `answer_query`; with labels.
    terms: What the client decided.
    account: The ledger and the consent.
    epsilon: The most that these labels may cost; None for no limit.
    insecure_noise_seed: As in `mechanisms.Mechanism`.

  Raises:
    EcosError: As in `label`.
  """

  def plan(book: ledger_lib.Ledger) -> _Plan[messages.LabelResponse]:
    labeller = private_knn.plan(
      terms,
      len(request.features),
      epsilon=epsilon,
      composed=book.epsilon,
      max_epsilon=book.guarantee.max_epsilon,
      insecure_noise_seed=insecure_noise_seed,
    )
    return _Plan(
      labeller.cost,
      consent.labels(request, labeller),
      lambda private: usefulness.of_labels(terms, private),
      lambda private: private_knn.label(
        request, private_knn.voting(private, terms.classes), labeller
      ),
    )

  return _settle(
    request,
    terms,
    {"epsilon": epsilon, "insecure_noise_seed": insecure_noise_seed},
    plan,
    data,
    account,
    messages.LabelResponse,
  )


def _settle(
  question: messages.Question,
  terms: messages.Terms | messages.LabelTerms,
  options: dict[str, float | int | None],
  plan: Callable[[ledger_lib.Ledger], _Plan[M]],
  data: Callable[[], encoding.Private],
  account: Account,
  kind: type[M],
) -> Answered[M]:
  """Returns the stored answer, or a new one that the ledger then holds.

  The arguments are those of `answer_query`, and:
    terms: Of the answer.
    options: What else an answer must share to be the same; None where unset.
    plan: Returns what would be drawn, given the ledger.
    kind: The answer's class.
  """
  key = dataclasses.asdict(terms)
  key |= {name: value for name, value in options.items() if value is not None}
  with ledger_lib.locked(account.ledger) as book:
    stored = book.find(question.digest, account.name, key)
    if stored is not None:
      return Answered(kind.from_bytes(stored.response), stored.time)
    if terms.unit != book.guarantee.unit:
      raise ledger_lib.LedgerError(
        f"`ledger`: {account.ledger} is for {book.guarantee}, and this answer "
        f"would hide a {terms.unit}, so the two cannot be added up: answer by "
        f"{book.guarantee.unit}, or make another ledger for other data"
      )
    planned = plan(book)
    book.check_budget(planned.cost)
    private = data()
    cost, warning = consent.ledger(book, planned.cost), planned.warning(private)
    told = filter(None, (planned.text, cost, warning))
    account.consent("\n".join(told))
    answer = planned.draw(private)
    book.append(
      ledger_lib.Entry(
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data=account.name,
        query_digest=question.digest,
        terms=key,
        epsilon=planned.cost.epsilon(terms.delta, terms.relation),
        cost=planned.cost,
        response=answer.to_bytes(),
      )
    )
  return Answered(answer)

"""Labels a proxy with private data: `python -m ecos_jax.client.label`.

    python -m ecos_jax.client.label --request=label_request.safetensors \
      --data=folder:/private/images --epsilon=5 --max_epsilon=6 \
      --ledger=ledger.jsonl --out=labels.safetensors

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

The order of things, the ledger and the consent are those of `client.respond`.
The number of samples is private and is printed nowhere.
"""

from collections.abc import Callable
import dataclasses
import datetime
import math
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
import dp_accounting
import numpy as np

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import errors
from ecos_jax import protocol
from ecos_jax import wire
from ecos_jax.client import command
from ecos_jax.client import neighbours
from ecos_jax.client import respond
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
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

  terms: protocol.LabelTerms
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
      protocol.Terms(sigma, terms.gamma, terms.delta, terms.relation), seed
    )


def _affordable(
  epsilon: Callable[[int], float],
  budget: float,
  terms: protocol.LabelTerms,
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
  terms: protocol.LabelTerms,
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
  request: protocol.LabelRequest,
  data: Data,
  batch_size: int,
  encoder: registry.Encoder | None = None,
) -> Samples:
  """Returns the samples that can vote: those whose label is a class.

  Args:
    request: From the cloud.
    data: Images with labels, or features with labels.
    batch_size: Images to read and encode at once.
    encoder: As in `respond.encoder_of`.

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
    encoder = respond.encoder_of(request, encoder)
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
    encoder: As in `respond.encoder_of`.
    batch_size: Images to read and encode at once.

  Raises:
    EcosError: The request is refused, or the data do not fit it.
  """
  request = protocol.LabelRequest.from_bytes(request_bytes)
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
  response = protocol.LabelResponse(
    labels=labels,
    request_digest=request.digest,
    terms=terms,
    mechanism=protocol.LABEL_MECHANISM,
    answers=labeller.answers,
    considered=considered,
    epsilon=labeller.cost.epsilon(terms.delta, terms.relation),
    private=labeller.insecure_noise_seed is None,
  )
  return response.to_bytes()


def answer(
  request_bytes: bytes,
  open_data: Callable[[], Data],
  terms: protocol.LabelTerms,
  ledger_path: Path,
  tag: str,
  *,
  consent: Callable[[str], None],
  epsilon: float | None,
  max_epsilon: float | None = None,
  encoder: registry.Encoder | None = None,
  batch_size: int = 1024,
  insecure_noise_seed: int | None = None,
) -> bytes:
  """Returns the labels of a request; the ledger holds them when this returns.

  The same request on the same data at the same terms and `epsilon` gets the
  stored labels and costs nothing.

  Args:
    request_bytes: From the cloud; not trusted.
    open_data: Opens the data; called last, if nothing refuses.
    terms: What the client decided.
    ledger_path: The ledger of these data.
    tag: Name of the data.
    consent: Is told what will happen, and raises to stop it.
    epsilon: The most that these labels may cost; None for no limit.
    max_epsilon: Budget of the ledger, at the delta of the terms.
    encoder: As in `respond.encoder_of`.
    batch_size: Images to read and encode at once.
    insecure_noise_seed: As in `Labeller`.

  Raises:
    EcosError: The request is refused, the ledger is damaged, not one answer is
      affordable, or the data do not fit.
  """
  request = protocol.LabelRequest.from_bytes(request_bytes)
  fields = dataclasses.asdict(terms)
  if epsilon is not None:
    fields["epsilon"] = epsilon
  with ledger.locked(ledger_path) as book:
    stored = book.find(request.digest, tag, fields)
    if stored is not None:
      return respond.stored_response(stored)
    labeller = plan(
      terms,
      len(request.features),
      epsilon=epsilon,
      composed=lambda cost: book.epsilon(terms, cost),
      max_epsilon=max_epsilon,
      insecure_noise_seed=insecure_noise_seed,
    )
    ledger_line = respond.describe_ledger(
      book, terms, labeller.cost, max_epsilon
    )
    consent(_describe(request, labeller, ledger_line))
    data = label(
      request_bytes,
      open_data(),
      labeller,
      encoder=encoder,
      batch_size=batch_size,
    )
    now = datetime.datetime.now(datetime.UTC)
    book.append(
      ledger.Entry(
        time=now.isoformat(timespec="seconds"),
        data=tag,
        query_digest=request.digest,
        terms=fields,
        epsilon=labeller.cost.epsilon(terms.delta, terms.relation),
        cost=labeller.cost,
        response=data,
      )
    )
  return data


def outcome(requests: int, considered: int, answered: int) -> str:
  """Returns, in words, what became of the requests.

  Args:
    requests: How many there were.
    considered: How many, until the answers were used up.
    answered: How many got a label; the rest of the considered did not pass.
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


def _describe(
  request: protocol.LabelRequest, labeller: Labeller, ledger_line: str
) -> str:
  """Returns who asks what, what leaves, what it costs and what is left."""
  m, d = request.features.shape
  terms, proposed = labeller.terms, request.terms
  alone = labeller.cost.epsilon(terms.delta, terms.relation)
  settings = " and ".join(
    f"gamma {t.gamma:.4g}, k {t.neighbours}, sigma {t.sigma_screen:g} and "
    f"{t.sigma_vote:g}, threshold {t.threshold:g}"
    for t in dict.fromkeys((terms, proposed))
  )
  return "\n".join(
    (
      f"request  {request.digest[:16]}: which of {terms.classes} classes has "
      f"each of {m} public samples (encoder {request.encoder_name}, d = {d})?",
      f"leaves   up to {labeller.answers} labels, each a noisy vote of the "
      "nearest of a random part of your samples; -1 for the rest",
      f"terms    {settings}"
      + ("" if terms == proposed else " (the request's proposal)"),
      f"costs    epsilon {alone:.6g} (delta {terms.delta:g}, "
      f"{terms.relation}), however many labels are given",
      ledger_line,
    )
  )


def _define_flags() -> None:
  flags.DEFINE_string("request", None, "The request file.", required=True)
  command.define_shared_flags(
    "folder:DIR with a folder for each class (see --classes), images:FILE.npz "
    "(uint8 images and integer labels), or tfds:NAME:SPLIT; labels as the "
    "cloud numbers them."
  )
  command.define_classes()
  flags.DEFINE_float(
    "epsilon",
    None,
    "The most these labels may cost: decides how many are given.",
    lower_bound=0.0,
    required=True,
  )
  proposal = "the request's without"
  flags.DEFINE_float(
    "gamma",
    None,
    f"Share of the samples in a subsample; {proposal}.",
    lower_bound=protocol.MIN_GAMMA,
    upper_bound=1.0,
  )
  flags.DEFINE_integer(
    "neighbours", None, f"How many vote; {proposal}.", lower_bound=1
  )
  for name, what in (
    ("sigma_screen", "Noise on the largest count"),
    ("sigma_vote", "Noise on each count"),
  ):
    flags.DEFINE_float(
      name,
      None,
      f"{what}, in votes; {proposal}.",
      lower_bound=protocol.MIN_SIGMA,
      upper_bound=protocol.MAX_SIGMA,
    )
  flags.DEFINE_float(
    "threshold", None, f"Votes from which an answer is given; {proposal}."
  )


def _terms(proposed: protocol.LabelTerms) -> protocol.LabelTerms:
  """Returns the proposal with what the flags say otherwise."""
  f = flags.FLAGS
  names = ("gamma", "neighbours", "sigma_screen", "sigma_vote", "threshold")
  fields: dict[str, Any] = dataclasses.asdict(proposed)
  fields |= {"delta": f.delta, "relation": config.Relation.ADD_REMOVE.value}
  fields |= {n: f[n].value for n in names if f[n].value is not None}
  return protocol.LabelTerms(**fields)


def main(argv: list[str]) -> None:
  """Labels the request that the flags name."""
  del argv
  f = flags.FLAGS
  out, ledger_path = command.checked_paths("request")
  request_bytes = wire.read_file(Path(f.request))
  request = protocol.LabelRequest.from_bytes(request_bytes)
  encoder = respond.encoder_of(request, respond.own_encoder(), f.weights)
  classes = command.classes(request.terms.classes)
  tag = command.tag_of(f.data, f.data_dir)
  if classes is not None:
    # Other classes give other labels: an answer about these is no answer.
    tag += f" with classes {','.join(classes)}"
  data = answer(
    request_bytes,
    lambda: pools.open_source(f.data, f.data_dir, classes),
    _terms(request.terms),
    ledger_path,
    tag,
    consent=command.consent,
    epsilon=f.epsilon,
    max_epsilon=f.max_epsilon,
    encoder=encoder,
    batch_size=f.batch_size,
  )
  wire.write_file(out, data)
  response = protocol.LabelResponse.from_bytes(data)
  m, given = len(response.labels), int((response.labels >= 0).sum())
  print(f"labels   {outcome(m, response.considered, given)}")
  print(f"wrote    {out} ({len(data)} bytes): carry it to the cloud")


if __name__ == "__main__":
  _define_flags()
  cli.run(main)

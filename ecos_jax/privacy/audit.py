"""Attacks the shipped mechanism and compares with what it claims.

    python -m ecos_jax.privacy.audit --sigma=1 --trials=100000

Accounting is a proof about a mechanism on paper; an audit runs the one in the
code. It makes two neighbouring datasets that differ in one sample, the canary,
which lies far from the rest and has a centroid to itself; draws the response
many times for each; and tries to tell which dataset an answer came from. An
(epsilon, delta)-private mechanism allows no event with

    P(event | one dataset) > e^epsilon P(event | the other) + delta,

so any event that violates it for the claimed epsilon is a proof of a defect.
The event (a statistic, a threshold, a direction) is chosen on a fifth of the
draws. On the others Clopper-Pearson intervals for its two probabilities give a
lower bound on epsilon that holds with the stated confidence (Jagielski et al.,
NeurIPS 2020).

An audit cannot show that a mechanism is private. It resolves no event rarer
than about one in the number of trials, so the bound stays below the truth.

This is an entry point that imports the client, so that what is attacked is the
path that ships: `respond.vote` and `respond.release`.
"""

from collections.abc import Iterator
import math
from typing import NamedTuple

from absl import flags
import numpy as np
from scipy import stats

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import errors
from ecos_jax import protocol
from ecos_jax.client import respond
from ecos_jax.privacy import mechanisms

_REPETITIONS = 10_000
_THRESHOLDS = 200
# The canary is so far from everything else.
_FAR = 1e3


class Event(NamedTuple):
  """What the attacker looks for in an answer.

  Attributes:
    statistic: `votes` or `low bits`, see `_statistics`.
    threshold: Of the statistic.
    above: Whether the event is to reach the threshold or to stay below it. An
      answer that reaches it speaks for the dataset with the canary.
  """

  statistic: str
  threshold: float
  above: bool


class Result(NamedTuple):
  """What an audit found.

  Attributes:
    bound: Lower bound on epsilon, at the confidence that was asked for.
    event: The event that gives it.
  """

  bound: float
  event: Event


def neighbours(relation: str) -> tuple[protocol.Query, np.ndarray, np.ndarray]:
  """Returns a dishonest query and features without and with the canary.

  Centroid 0 takes all other samples, centroid 1 the canary, and, where the
  canary is replaced and not added, centroid 2 what stood in its place.

  Args:
    relation: `add_remove` or `replace_one`.

  Returns:
    The query, and two [n, d] float32 arrays that are neighbours.
  """
  places = np.array([[0, 0], [_FAR, 0], [0, _FAR]], np.float32)
  rest, canary, other = np.split(places, 3)
  rest = np.repeat(rest, 3, axis=0)
  replaced = config.Relation(relation) is config.Relation.REPLACE_ONE
  query = protocol.Query(
    centroids=places if replaced else places[:2],
    encoder_name="audit",
    encoder_settings={},
    encoder_digest="0" * 64,
    terms=protocol.Terms(1.0, 1.0, 1e-5, relation),
  )
  without = np.concatenate([rest, other]) if replaced else rest
  return query, without, np.concatenate([rest, canary])


def _draw(
  query: protocol.Query,
  data: np.ndarray,
  mechanism: mechanisms.Mechanism,
  trials: int,
) -> np.ndarray:
  """Returns answers, [trials, R]."""
  votes = respond.vote(query, data, batch_size=1024)
  answers = [
    respond.release(
      votes,
      len(query.centroids),
      mechanism,
      repetitions=min(_REPETITIONS, trials - start),
    )
    for start in range(0, trials, _REPETITIONS)
  ]
  return np.concatenate(answers)


def _in_float32(numbers: np.ndarray) -> np.ndarray:
  return numbers.astype(np.float32) == numbers


def _statistics(answers: np.ndarray) -> dict[str, np.ndarray]:
  """Returns what an attacker can compute of answers [trials, R], by name.

  `votes` is the canary's count, less the one of the sample that it replaces: it
  orders answers by likelihood. `low bits` asks whether the noise would be a
  32-bit float if the canary's count were 1, and if it were 0; floating-point
  noise betrays the count so (Mironov 2012), integer noise never.
  """
  canary = answers[:, 1]
  votes = canary - answers[:, 2] if answers.shape[1] > 2 else canary
  bits = 1.0 * _in_float32(canary - 1.0) - 1.0 * _in_float32(canary - 0.0)
  return {"votes": votes, "low bits": bits}


def _events(answers: np.ndarray) -> Iterator[Event]:
  for name, values in _statistics(answers).items():
    thresholds = np.unique(values)
    if len(thresholds) > _THRESHOLDS:
      thresholds = np.quantile(values, np.linspace(0, 1, _THRESHOLDS))
    for threshold in thresholds:
      yield Event(name, float(threshold), above=True)
      yield Event(name, float(threshold), above=False)


def _count(event: Event, statistics: dict[str, np.ndarray]) -> int:
  reached = statistics[event.statistic] >= event.threshold
  return int(np.count_nonzero(reached == event.above))


def lower_bound(
  hits: int, false_alarms: int, trials: int, delta: float, confidence: float
) -> float:
  """Returns the epsilon that is shown by how often an event occurred.

  Args:
    hits: Occurrences in `trials` answers about one dataset.
    false_alarms: Occurrences in `trials` answers about the other.
    trials: Answers about each.
    delta: Of the claim.
    confidence: That the true epsilon is no smaller.

  Returns:
    The bound, which is negative where nothing is shown.
  """
  # Clopper-Pearson, one-sided, each at half of what may go wrong.
  risk = (1 - confidence) / 2
  rate = stats.beta.ppf(risk, hits, trials - hits + 1) if hits else 0.0
  alarm = 1.0
  if false_alarms < trials:
    alarm = stats.beta.isf(risk, false_alarms + 1, trials - false_alarms)
  if rate <= delta:
    return -math.inf
  return math.log((rate - delta) / alarm)


def audit(
  mechanism: mechanisms.Mechanism,
  delta: float,
  relation: str,
  trials: int,
  confidence: float,
) -> Result:
  """Returns a lower bound on the epsilon of a mechanism.

  Args:
    mechanism: What is attacked; a subclass may be broken on purpose.
    delta: At which epsilon is claimed.
    relation: At which epsilon is claimed.
    trials: Answers to draw about each of two neighbouring datasets.
    confidence: Probability that the bound is below the true epsilon.
  """
  query, *datasets = neighbours(relation)
  without, present = (
    _draw(query, data, mechanism, trials) for data in datasets
  )
  pilot = trials // 5
  chosen_on = [_statistics(a[:pilot]) for a in (without, present)]
  measured_on = [_statistics(a[pilot:]) for a in (without, present)]

  def bound(event: Event, samples: list[dict[str, np.ndarray]]) -> float:
    size = len(samples[0]["votes"])
    false_alarms, hits = (_count(event, sample) for sample in samples)
    if not event.above:
      hits, false_alarms = false_alarms, hits
    return lower_bound(hits, false_alarms, size, delta, confidence)

  answers = np.concatenate([without[:pilot], present[:pilot]])
  event = max(_events(answers), key=lambda event: bound(event, chosen_on))
  return Result(max(0.0, bound(event, measured_on)), event)


def _define_flags() -> None:
  flags.DEFINE_float("sigma", 1.0, "Noise of the mechanism.")
  flags.DEFINE_float("gamma", 0.8, "Its subsampling rate.")
  flags.DEFINE_float("delta", 1e-5, "Of the claim.")
  flags.DEFINE_enum_class(
    "relation",
    config.Relation.ADD_REMOVE,
    config.Relation,
    "Neighbours of the claim.",
  )
  flags.DEFINE_integer(
    "trials", 100_000, "Answers about each dataset.", lower_bound=100
  )
  flags.DEFINE_float(
    "confidence",
    0.999,
    "Probability that the bound holds.",
    lower_bound=0.5,
    upper_bound=1 - 1e-9,
  )


def main(argv: list[str]) -> None:
  """Audits the mechanism that the flags describe."""
  del argv
  f = flags.FLAGS
  terms = protocol.Terms(f.sigma, f.gamma, f.delta, f.relation.value)
  mechanism = mechanisms.Mechanism(terms)
  claim = mechanism.statement.epsilon
  result = audit(mechanism, f.delta, terms.relation, f.trials, f.confidence)
  event = result.event
  print(
    f"claimed   epsilon {claim:.6g} (delta {terms.delta:g}, {terms.relation}; "
    f"sigma {terms.sigma:g}, gamma {terms.gamma:g})\n"
    f"shown     epsilon is at least {result.bound:.4g} (confidence "
    f"{f.confidence:g}, {f.trials} answers about each dataset)\n"
    f"by        {event.statistic} {'>=' if event.above else '<'} "
    f"{event.threshold:g}"
  )
  if result.bound > claim:
    raise errors.EcosError("the claim is refuted: do not use this mechanism")


if __name__ == "__main__":
  _define_flags()
  cli.run(main)

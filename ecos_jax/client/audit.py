"""Attacks the shipped mechanism and compares with what it claims.

    python -m ecos_jax.privacy.audit --sigma=1 --trials=100000

It attacks at the gamma that is asked for, and at a small gamma, which shows
whether subsampling happens.

Accounting proves something about a mechanism on paper; an audit runs the
mechanism in the code. It makes two datasets that differ in one sample or, with
--unit=person, in one person with 50 samples. This canary lies far from the rest
and has its own centroid. The audit draws the response many times for each
dataset, and tries to tell which dataset an answer came from. An
(epsilon, delta)-private mechanism allows no event with

    P(event | one dataset) > e^epsilon P(event | the other) + delta,

so any such event for the claimed epsilon proves a defect. The event (a
statistic, a threshold, a direction) is chosen on a fifth of the draws. On the
others, Clopper-Pearson intervals for its two probabilities give a lower bound
on epsilon that holds with the stated confidence (Jagielski et al., NeurIPS
2020).

Before that it draws some answers in separate calls: noise that repeats between
calls hides nothing, however good it looks within one call.

An audit cannot show that a mechanism is private. It sees no event that is rarer
than about one in the number of trials, so the bound stays below the truth.

It attacks the code that answers queries: `coverage.cast` and
`coverage.release`.
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
from ecos_jax import messages
from ecos_jax.client import coverage
from ecos_jax.config import limits
from ecos_jax.privacy import composition
from ecos_jax.privacy import mechanisms
from ecos_jax.privacy import units

_REPETITIONS = 10_000
_THRESHOLDS = 200
# The canary's distance from everything else, and how many samples it has if it
# is a person.
_FAR = 1e3
_SAMPLES = 50
# Samples that both datasets have.
_REST = 3
# The canary's bin is 1, then 0: a defect may be in one bin alone.
_SHIFTS = (0, 2)
# Correct noise repeats itself with a probability below this.
_REPEAT_RISK = 1e-12
# The command's second audit has this gamma.
_SMALL_GAMMA = 0.05
# The probability with which the command's bounds hold.
_CONFIDENCE = 0.999


class Event(NamedTuple):
  """What the attacker looks for in an answer.

  Attributes:
    statistic: One of `_statistics`, or `repeated noise`.
    threshold: The threshold of the statistic.
    above: True if the event is to reach the threshold, which suggests the
      dataset with the canary; False if it is to stay below.
  """

  statistic: str
  threshold: float
  above: bool


class Result(NamedTuple):
  """What an audit found.

  Attributes:
    bound: Lower bound on epsilon with the confidence that was asked for;
      infinite if the noise repeats itself.
    event: The event that shows it.
  """

  bound: float
  event: Event


def neighbours(
  relation: str, shift: int = 0, votes: int = 0, samples: int = 1
) -> tuple[messages.Query, np.ndarray, np.ndarray]:
  """Returns a dishonest question, and features without and with the canary.

  Centroid 0 is nearest to all other samples, centroid 1 to the canary's. Where
  the canary replaces a sample, centroid 2 is nearest to that one.

  With votes on directions, the other samples lie in the mean and have none. All
  directions go through the canary, which votes 1 and -1 in turn.

  Args:
    relation: `add_remove` or `replace_one`.
    shift: Added to the numbers of the centroids, modulo 3.
    votes: The votes of a sample on directions; 0: ask for counts.
    samples: How many the canary has, and what it replaces.

  Returns:
    The question, and two neighbouring datasets [n, d] float32.
  """
  places = np.array([[0, 0], [_FAR, 0], [0, _FAR]], np.float32)
  rest, canary, other = np.split(places, 3)
  rest = np.repeat(rest, _REST, axis=0)
  canary, other = (np.repeat(rows, samples, axis=0) for rows in (canary, other))
  replaced = config.Relation(relation) is config.Relation.REPLACE_ONE
  without = np.concatenate([rest, other]) if replaced else rest
  terms = messages.Terms(1.0, 1.0, limits.MIN_DELTA, relation)
  encoder = {
    "encoder_name": "none",
    "encoder_settings": {},
    "encoder_digest": 64 * "0",
  }
  if votes:
    query = messages.Query(
      centroids=None,
      directions=_signs(votes)[:, None] * places[1],
      mean=places[0],
      votes=votes,
      terms=terms,
      **encoder,
    )
  else:
    query = messages.Query(
      centroids=np.roll(places, shift, axis=0), terms=terms, **encoder
    )
  return query, without, np.concatenate([rest, canary])


def _signs(votes: int) -> np.ndarray:
  """Returns 1, -1, 1, ..., float32 [votes]."""
  return np.float32(1) - 2 * np.arange(votes, dtype=np.float32) % 4


def _draw(
  query: messages.Query,
  data: np.ndarray,
  mechanism: mechanisms.Mechanism,
  trials: int,
) -> np.ndarray:
  """Returns answers, [trials, 3].

  For votes on directions the columns are the sum of all votes, their sum with
  the signs of the canary's votes, which orders answers by likelihood, and the
  counter of voters.
  """
  cast = coverage.cast(query, data)
  persons = None
  if mechanism.terms.unit == config.Unit.PERSON.value:
    # Each other sample is a person of its own, and the canary's are one more.
    persons = units.Persons(np.minimum(np.arange(len(data)), _REST))
  answers = np.concatenate(
    [
      coverage.release(
        cast,
        query,
        mechanism,
        repetitions=min(_REPETITIONS, trials - start),
        persons=persons,
      )
      for start in range(0, trials, _REPETITIONS)
    ]
  )
  if not query.votes:
    return answers
  voters, votes = answers[:, -1], answers[:, :-1]
  likely = voters + votes @ _signs(query.votes).astype(answers.dtype)
  return np.stack([votes.sum(axis=1), likely, voters], axis=1)


def _in_float32(numbers: np.ndarray) -> np.ndarray:
  return numbers.astype(np.float32) == numbers


def _statistics(answers: np.ndarray) -> dict[str, np.ndarray]:
  """Returns statistics of answers [trials, 3] by name, each [trials].

  `votes` is the canary's count. Minus the count of the sample that it replaces,
  it orders answers by likelihood. Differences cancel noise that bins share, and
  the sum cancels noise that adds up to zero. `low bits` tests whether the noise
  would be a 32-bit float if the canary's count were 1, and if it were 0:
  floating-point noise reveals the count in this way (Mironov 2012), integer
  noise does not.
  """
  rest, canary, other = answers.T
  bits = 1.0 * _in_float32(canary - 1.0) - 1.0 * _in_float32(canary - 0.0)
  return {
    "votes": canary,
    "votes less the rest's": canary - rest,
    "votes less the other's": canary - other,
    "all votes": answers.sum(1),
    "low bits": bits,
  }


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
  """Returns a lower bound on epsilon, given how often an event occurred.

  It is negative if the counts show nothing.

  Args:
    hits: Occurrences in `trials` answers about one dataset.
    false_alarms: Occurrences in `trials` answers about the other dataset.
    trials: Number of answers about each dataset.
    delta: The delta of the claim.
    confidence: Probability that the true epsilon is no smaller.
  """
  # Clopper-Pearson, one-sided; each interval takes half of the risk.
  risk = (1 - confidence) / 2
  rate = stats.beta.ppf(risk, hits, trials - hits + 1) if hits else 0.0
  alarm = 1.0
  if false_alarms < trials:
    alarm = stats.beta.isf(risk, false_alarms + 1, trials - false_alarms)
  if rate <= delta:
    return -math.inf
  return math.log((rate - delta) / alarm)


def _repeats(mechanism: mechanisms.Mechanism, relation: str) -> bool:
  """Returns whether separate calls draw the same noise."""
  query, _, data = neighbours(relation, votes=mechanism.bins - 1)
  _, log_mass = composition.log_noise(mechanism.scale)
  # The probability that this many calls agree in a bin is at most the risk.
  calls = 2 + math.ceil(math.log(_REPEAT_RISK) / log_mass.max())
  first, *others = (_draw(query, data, mechanism, 1)[0] for _ in range(calls))
  return bool(np.all(np.stack(others) == first, axis=0).any())


def audit(
  mechanism: mechanisms.Mechanism,
  delta: float,
  relation: str,
  trials: int,
  confidence: float,
) -> Result:
  """Returns a lower bound on the epsilon of a mechanism.

  Args:
    mechanism: The mechanism to attack.
    delta: The delta of the claim.
    relation: The relation of the claim.
    trials: Answers to draw for each dataset and each order of the bins.
    confidence: Probability that the bound is below the true epsilon.

  Raises:
    EcosError: The mechanism draws from a seed, so it claims nothing.
  """
  if not mechanism.statement.private:
    raise errors.EcosError(
      "the mechanism draws from a seed and claims nothing: nothing to audit"
    )
  if _repeats(mechanism, relation):
    return Result(math.inf, Event("repeated noise", 1.0, above=True))
  pilot = trials // 5
  chosen_on, measured_on, candidates = [], [], []

  def bound(event: Event, samples: list[dict[str, np.ndarray]]) -> float:
    size = len(samples[0]["votes"])
    false_alarms, hits = (_count(event, sample) for sample in samples)
    if not event.above:
      hits, false_alarms = false_alarms, hits
    return lower_bound(hits, false_alarms, size, delta, confidence)

  by_person = mechanism.terms.unit == config.Unit.PERSON.value
  samples = _SAMPLES if by_person else 1
  votes = mechanism.bins - 1
  for layout, shift in enumerate((0,) if votes else _SHIFTS):
    query, *datasets = neighbours(relation, shift, votes, samples)
    answers = [
      np.roll(_draw(query, data, mechanism, trials), -shift, axis=1)
      for data in datasets
    ]
    chosen_on.append([_statistics(a[:pilot]) for a in answers])
    measured_on.append([_statistics(a[pilot:]) for a in answers])
    for event in _events(np.concatenate([a[:pilot] for a in answers])):
      candidates.append((bound(event, chosen_on[layout]), layout, event))
  _, layout, event = max(candidates, key=lambda candidate: candidate[0])
  return Result(max(0.0, bound(event, measured_on[layout])), event)


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
  flags.DEFINE_enum_class(
    "unit",
    config.Unit.SAMPLE,
    config.Unit,
    "What the canary is: one sample, or one person with 50 samples.",
  )
  flags.DEFINE_integer(
    "votes",
    0,
    "Votes of a sample on directions; 0: counts.",
    lower_bound=0,
    upper_bound=limits.MAX_DIRECTIONS,
  )
  flags.DEFINE_integer(
    "trials", 100_000, "Answers about each dataset and order.", lower_bound=100
  )


def main(argv: list[str]) -> None:
  """Audits the mechanism that the flags describe, also at a small gamma."""
  del argv
  f = flags.FLAGS
  for gamma in dict.fromkeys((f.gamma, _SMALL_GAMMA)):
    _report(
      messages.Terms(
        f.sigma, gamma, f.delta, f.relation.value, unit=f.unit.value
      )
    )


def _report(terms: messages.Terms) -> None:
  """Prints what an audit finds.

  Raises:
    EcosError: The claim is refuted.
  """
  f = flags.FLAGS
  mechanism = mechanisms.Mechanism(terms, bins=f.votes + 1)
  claim = mechanism.statement.epsilon
  result = audit(mechanism, f.delta, terms.relation, f.trials, _CONFIDENCE)
  event = result.event
  print(
    f"claimed   epsilon {claim:.6g} per {terms.unit} (delta {terms.delta:g}, "
    f"{terms.relation}; sigma {terms.sigma:g}, gamma {terms.gamma:g})\n"
    f"shown     epsilon is at least {result.bound:.4g} (confidence "
    f"{_CONFIDENCE:g}, {f.trials} answers about each dataset)\n"
    f"by        {event.statistic} {'>=' if event.above else '<'} "
    f"{event.threshold:g}"
  )
  if result.bound > claim:
    raise errors.EcosError("the claim is refuted: do not use this mechanism")


if __name__ == "__main__":
  _define_flags()
  cli.run(main)

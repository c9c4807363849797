"""The privacy terms that messages propose and state."""

import dataclasses
import math
from typing import Annotated

from ecos_jax import config
from ecos_jax.config import limits
from ecos_jax.messages import fields
from ecos_jax.messages import wire

MECHANISM = "poisson_discrete_gaussian"
_MAX_EPSILON = 1e6

Sigma = Annotated[float, fields.number(limits.MIN_SIGMA, limits.MAX_SIGMA)]
Gamma = Annotated[float, fields.number(limits.MIN_GAMMA, 1.0)]
Delta = Annotated[float, fields.number(limits.MIN_DELTA, limits.MAX_DELTA)]
Epsilon = Annotated[float, fields.number(0.0, _MAX_EPSILON)]
Relation = Annotated[str, fields.member(config.Relation)]
Unit = Annotated[str, fields.member(config.Unit)]
Flag = Annotated[bool, fields.boolean]


@dataclasses.dataclass(frozen=True)
class Terms(fields.Checked):
  """The privacy terms of scores.

  Attributes:
    sigma: Scale of the discrete Gaussian noise, in units of the L2 sensitivity:
      in votes where a sample has one.
    gamma: Probability that a unit takes part, independently of the others.
    delta: The delta of (epsilon, delta).
    relation: `add_remove` or `replace_one`; a `config.Relation` is accepted.
    unit: `sample`, or `person`: of each person one random sample takes part.
  """

  sigma: Sigma
  gamma: Gamma
  delta: Delta
  relation: Relation
  unit: Unit = dataclasses.field(default=config.Unit.SAMPLE.value, kw_only=True)

  def __post_init__(self):
    """Also checks that delta alone does not allow everything."""
    super().__post_init__()
    # Else showing gamma of the samples as they are would count as private.
    if self.delta >= self.gamma:
      raise wire.ProtocolError(
        "gamma must be above delta: it would allow anything"
      )


@dataclasses.dataclass(frozen=True)
class Statement(Terms):
  """What the client states about the scores that it released.

  Attributes:
    epsilon: The epsilon of the noise, for delta and the relation.
    private: False if the noise came from a seed: then epsilon is worth nothing.
    bins: Number of counts that one sample changes, by one each.
    weight: By how much it changes one more count; 0: there is none.
    mechanism: What was drawn, `MECHANISM`.
  """

  epsilon: Epsilon
  private: Flag
  bins: Annotated[int, fields.integer(1, limits.MAX_DIRECTIONS + 1)] = 1
  weight: Annotated[int, fields.integer(0, limits.MAX_WEIGHT)] = 0
  mechanism: Annotated[str, fields.constant(MECHANISM)] = MECHANISM

  def __post_init__(self):
    """Also checks what is known of the accounting of several votes."""
    super().__post_init__()
    check_votes(self, self.bins, self.weight)

  @property
  def scale(self) -> float:
    """Scale of the noise on each count."""
    return self.sigma * math.sqrt(self.bins + self.weight**2)


def check_votes(terms: Terms, bins: int, weight: int) -> None:
  """Checks that the accounting covers these terms with several votes.

  Args:
    terms: What to answer at.
    bins: As in `Statement`.
    weight: As in `Statement`.

  Raises:
    ProtocolError: It does not.
  """
  shift = bins + weight**2
  if shift == 1:
    return
  if terms.relation != config.Relation.ADD_REMOVE.value:
    raise wire.ProtocolError(
      "relation must be add_remove where a sample has several votes: no other "
      "bound is proven; or ask for counts alone"
    )
  if terms.sigma > limits.max_sigma(shift):
    raise wire.ProtocolError(
      f"sigma must be at most {limits.max_sigma(shift):g} for {bins} votes and "
      f"one of weight {weight}"
    )


@dataclasses.dataclass(frozen=True)
class LabelTerms(fields.Checked):
  """The terms of Private-kNN labelling (Zhu et al., CVPR 2020).

  Attributes:
    classes: Number of classes.
    neighbours: k, the private samples that vote on one request.
    sigma_screen: Noise on the largest number of votes, for every request.
    sigma_vote: Noise on the votes of the requests that are answered.
    threshold: A request is answered if the screened number of votes reaches it.
    gamma: As in `Terms`. Each request has a subsample for screening and another
      one for its votes.
    delta: As in `Terms`.
    relation: As in `Terms`.
    unit: As in `Terms`.
  """

  classes: Annotated[int, fields.integer(2, limits.MAX_CLASSES)]
  neighbours: Annotated[int, fields.integer(1, limits.MAX_SAMPLES)]
  sigma_screen: Sigma
  sigma_vote: Sigma
  threshold: Annotated[
    float, fields.number(-limits.MAX_THRESHOLD, limits.MAX_THRESHOLD)
  ]
  gamma: Gamma
  delta: Delta
  relation: Relation
  unit: Unit = config.Unit.SAMPLE.value

  def __post_init__(self):
    """Also checks gamma and delta as `Terms` does."""
    super().__post_init__()
    Terms(self.sigma_vote, self.gamma, self.delta, self.relation)

"""The mechanism: subsample the votes, add integer noise, state the cost.

One object draws the subsample and the noise and states their cost, so the claim
is about what ran. Its guarantee, with T its terms:

1. Each unit (T.unit: a sample, or a person with all samples of theirs) takes
   part with probability exactly T.gamma, independently. Of a person one random
   sample votes.
2. Each count gets independent discrete Gaussian noise of scale exactly `scale`
   (Canonne, Kamath, Steinke 2020). The noise is integer, so no low bits can
   reveal the count (Mironov 2012).
3. If each sample changes at most `bins` counts by one, up or down, and one more
   by `weight`, the noised counts are (`epsilon`, T.delta)-differentially
   private for T.relation.

The randomness is the operating system's, through `secrets` and through OpenDP's
OpenSSL. Counts are at most 2^40, and OpenDP's 64-bit additions saturate.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import secrets

import numpy as np
from opendp import domains
from opendp import measurements
from opendp import metrics
from opendp import mod

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.config import limits
from ecos_jax.config import reading
from ecos_jax.messages import fields
from ecos_jax.messages import terms as terms_lib
from ecos_jax.privacy import accounting
from ecos_jax.privacy import composition
from ecos_jax.privacy import units

# Units whose random bits are drawn at once.
_DRAW = 2**20


@dataclasses.dataclass(frozen=True)
class Mechanism:
  """The Poisson-subsampled discrete Gaussian on sums of votes.

  Attributes:
    terms: Sigma, gamma, delta and the neighbour relation.
    insecure_noise_seed: Draws the same from this seed at every call, instead of
      from the operating system's entropy. For tests and studies only: anyone
      who knows or guesses the seed can subtract the noise.
    bins: Number of counts that one sample changes, by one each: 1 for a
      histogram of votes, one more than the votes on directions.
    weight: By how much it changes one more count; 0: there is none.
  """

  terms: messages.Terms
  insecure_noise_seed: int | None = None
  bins: int = 1
  weight: int = 0

  def __post_init__(self):
    """Checks the seed, and that the accounting covers the terms and votes.

    Raises:
      EcosError: The seed is refused, or the accounting does not cover them.
    """
    terms_lib.check_votes(self.terms, self.bins, self.weight)
    seed = reading.from_arguments(
      config.Privacy, insecure_noise_seed=self.insecure_noise_seed
    ).insecure_noise_seed
    object.__setattr__(self, "insecure_noise_seed", seed)

  @classmethod
  def of(
    cls,
    epsilon: float | None,
    sigma: float | None,
    gamma: float,
    delta: float,
    relation: str,
    insecure_noise_seed: int | None = None,
    bins: int = 1,
    weight: int = 0,
    *,
    unit: str = config.Unit.SAMPLE.value,
  ) -> "Mechanism":
    """Returns the mechanism with noise `sigma`, or the least for `epsilon`.

    One of `epsilon` and `sigma` is None; the rest is as in `messages.Terms` and
    in the attributes.

    Raises:
      EcosError: A term is out of range, or no sigma within the limits is
        enough.
    """
    if (sigma is None) == (epsilon is None):
      raise errors.EcosError("give `epsilon` or `sigma`, and not both")
    least = limits.MIN_SIGMA if sigma is None else sigma
    terms = messages.Terms(least, gamma, delta, relation, unit=unit)
    if epsilon is not None:
      most = fields.number(0.0, math.inf)(epsilon, "`epsilon`")
      rest = terms.gamma, terms.delta, terms.relation, bins, weight
      terms = dataclasses.replace(terms, sigma=accounting.sigma(most, *rest))
    return cls(terms, insecure_noise_seed, bins, weight)

  @property
  def cost(self) -> accounting.Cost:
    """The cost of one answer, which composes."""
    return accounting.Cost((self._release,))

  @property
  def scale(self) -> float:
    """Scale of the noise on each count: sigma times the L2 sensitivity."""
    return self._release.sigma

  @property
  def _release(self) -> accounting.Release:
    return accounting.Release.of(
      self.terms.sigma, self.terms.gamma, self.bins, self.weight
    )

  @property
  def statement(self) -> messages.Statement:
    """What a response states about its noise."""
    return messages.Statement(
      epsilon=self.cost.epsilon(self.terms.delta, self.terms.relation),
      private=self.insecure_noise_seed is None,
      bins=self.bins,
      weight=self.weight,
      **dataclasses.asdict(self.terms),
    )

  def subsample(self, n: int) -> np.ndarray:
    """Returns which of n units take part, [n] bool, drawn independently."""
    # 64 random bits below gamma * 2^64, an integer: see limits.MIN_GAMMA.
    limit = int(self.terms.gamma * 2**64)
    if limit == 2**64:
      return np.ones(n, np.bool_)
    taken = np.empty(n, np.bool_)
    for part, bits in self._bits(taken, 0):
      part[:] = bits < np.uint64(limit)
    return taken

  def voters(
    self, n: int, persons: units.Persons | None, repetitions: int = 1
  ) -> np.ndarray:
    """Returns which samples vote, [repetitions, n] bool.

    These are a random subsample, or one random sample of each person in a
    random subsample of the persons.

    Args:
      n: Number of samples.
      persons: Whose they are; None if each sample is a unit of its own.
      repetitions: Number of independent draws.

    Raises:
      EcosError: The persons are not those that the terms speak of.
    """
    by_person = self.terms.unit == config.Unit.PERSON.value
    if by_person != (persons is not None):
      raise errors.EcosError("give `persons` exactly if `unit` is person")
    if persons is None:
      return self.subsample(repetitions * n).reshape(repetitions, n)
    if len(persons.ids) != n:
      raise errors.EcosError("`persons` must have one id for each sample")
    taken = self.subsample(repetitions * len(persons)).reshape(repetitions, -1)
    picked = np.empty(taken.shape, np.int64)
    for part, bits in self._bits(picked, 2):
      part[:] = persons.pick(bits)
    voting = np.zeros((repetitions, n), np.bool_)
    rows, columns = np.nonzero(taken)
    voting[rows, picked[rows, columns]] = True
    return voting

  def _bits(
    self, array: np.ndarray, stream: int
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields parts of an array, and 64 random bits for each of its elements.

    Args:
      array: [n, ...]; it is cut along its first axis.
      stream: With a seed, streams draw differently.
    """
    random = None
    if self.insecure_noise_seed is not None:
      random = np.random.default_rng([self.insecure_noise_seed, stream])
    rows = max(1, _DRAW // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
      part = array[start : start + rows]
      if random is None:
        bits = np.frombuffer(secrets.token_bytes(8 * part.size), np.uint64)
      else:
        bits = random.integers(2**64, size=part.size, dtype=np.uint64)
      yield part, bits.reshape(part.shape)

  def noised(self, coverage: np.ndarray) -> np.ndarray:
    """Returns counts of any shape with independent noise on each, int64."""
    if self.insecure_noise_seed is not None:
      random = np.random.default_rng([self.insecure_noise_seed, 1])
      x, log_mass = composition.log_noise(self.scale)
      return coverage + random.choice(x, coverage.shape, p=np.exp(log_mass))
    noised = _gaussian(self.scale)(coverage.ravel().tolist())
    return np.array(noised, np.int64).reshape(coverage.shape)


@functools.cache
def _gaussian(sigma: float) -> mod.Measurement:
  """Returns OpenDP's measurement; it takes the float sigma as a rational."""
  # OpenDP calls parts so whose proofs are not vetted yet. Only its sampler is
  # used here, and it is tested against its probabilities.
  mod.enable_features("contrib")
  return measurements.make_gaussian(
    domains.vector_domain(domains.atom_domain(T="i64")),
    metrics.l2_distance(T="f64"),
    scale=sigma,
  )

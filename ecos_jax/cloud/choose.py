"""The rule that turns the client's answer into samples of the pool.

For cluster r, of n_r samples of the pool:

    votes    v_r  estimated from the noisy scores (`scores.votes`)
    density  v_r / n_r: the client's density over the pool's, up to a factor
    weight   v_r (v_r / n_r)^density_power
    quota    the budget in proportion to the weights (`quotas.divide`)
    samples  that many of the cluster (`sampling.decompress`)

All of it post-processes the answer, and costs no privacy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import density as density_lib
from ecos_jax.cloud import labels as labels_lib
from ecos_jax.cloud import question as question_lib
from ecos_jax.cloud import quotas
from ecos_jax.cloud import sampling
from ecos_jax.cloud import scores as scores_lib
from ecos_jax.cloud import worth as worth_lib
from ecos_jax.clustering import chunks
from ecos_jax.clustering import start as start_lib
from ecos_jax.config import checks
from ecos_jax.config import reading

# Counts do not tell what else lies in a cluster, and labels by votes are right
# more often where the client is dense: denser clusters are preferred.
_POWER = 0.5
_NONE = np.zeros(0, np.int64)


class Choice(NamedTuple):
  """The chosen samples of the pool.

  Attributes:
    indices: int64 [B], rows of the pool.
    clusters: int32 [B], the cluster of each; -1 where there are no clusters.
    weights: float32 [B], how many of the client's samples each stands for,
      relative to the mean: the votes of a cluster, shared by its samples.
    worth: What the client's answer was worth; None if nothing was asked.
    covered: bool [R], the densest clusters with 95 % of the client's votes;
      None if nothing was asked.
  """

  indices: np.ndarray
  clusters: np.ndarray
  weights: np.ndarray
  worth: worth_lib.Worth | None = None
  covered: np.ndarray | None = None

  def by_cluster(self) -> "Choice":
    """Returns the same samples, sorted by cluster, then by index."""
    order = np.lexsort((self.indices, self.clusters))
    return self._replace(
      indices=self.indices[order],
      clusters=self.clusters[order],
      weights=self.weights[order],
    )


def choose(
  features: chunks.Features | jax.Array,
  codebook: codebook_lib.Codebook,
  question: bytes,
  answers: bytes | Sequence[bytes],
  budget: int,
  key: jax.Array,
  *,
  filter: config.Filter | str = config.Sampling.filter,
  threshold: float = config.Sampling.threshold,
  estimate: config.Estimate | str = config.Sampling.estimate,
  density_power: float | None = config.Sampling.density_power,
  classes: config.Classes | str = config.Sampling.classes,
  within: config.Within | str = config.Sampling.within,
  likely: float = config.Sampling.likely,
  central: float = config.Sampling.central,
) -> Choice:
  """Returns the samples of the pool that are most like the client's.

  By default it is the method `ecos`; `**config.PAPER` makes it `ecos_paper`. A
  prefix of the result is the choice for a smaller budget; `samples` says where
  it may differ.

  Args:
    features: float16 or float32 [N, d], an array or a feature bank: what the
      codebook was fitted on.
    codebook: The codebook, of R clusters.
    question: What the client was asked, from `question.ask`.
    answers: The client's answer, or those of several clients, to add up.
    budget: B, how many to choose; fewer if the clusters with votes have fewer.
    key: Random key, for candidates in large clusters and for `random`.
    filter: `none`, or `threshold`: clusters with a lower score get no quota.
    threshold: The least score, in multiples of sigma.
    estimate: Votes of a cluster: the `posterior` mean given all scores, or the
      `score`.
    density_power: a: a cluster of n samples and v votes has the weight
      v (v / n)^a; None: 0 if the answer is about directions and not by class,
      and 0.5 otherwise.
    classes: For an answer by class: the samples of each label are equally many
      (`balanced`), or in proportion to the client's classes (`client`).
    within: Inside a cluster: `kcenter`, `nearest` to the centroid or `random`.
    likely: Share of a cluster to choose from, where the client is densest.
    central: Share of these samples to choose from, nearest to the centroid.

  Raises:
    EcosError: An argument is refused, or does not fit the others.
  """
  features = chunks.checked(features)
  shape = len(codebook.assignment), codebook.centroids.shape[1]
  if features.shape != shape:
    raise errors.EcosError(
      f"`features` must be those of `codebook`, {list(shape)}, got "
      f"{list(features.shape)}"
    )
  combined = _read(question, answers, codebook)
  options = reading.from_arguments(
    config.Sampling,
    budget=budget,
    filter=filter,
    threshold=threshold,
    estimate=estimate,
    density_power=density_power,
    classes=classes,
    within=within,
    likely=likely,
    central=central,
  )
  key = start_lib.checked(key)
  discriminant = None
  if options.classes is not config.Classes.IGNORE:
    discriminant = _discriminant(features, codebook, combined, key)
  return samples(features, codebook, combined, options, key, discriminant)


def _read(
  question: bytes,
  answers: bytes | Sequence[bytes],
  book: codebook_lib.Codebook,
) -> question_lib.Combined:
  query = messages.Query.from_bytes(question)
  if not question_lib.is_about(query, book):
    raise errors.EcosError(
      "`question` is not about `codebook`: give the one made from it"
    )
  if isinstance(answers, bytes):
    answers = [answers]
  if not isinstance(answers, Sequence) or not all(
    isinstance(answer, bytes) for answer in answers
  ):
    raise errors.EcosError("`answers` must be bytes, or a list of bytes")
  if len(set(answers)) < len(answers):
    raise errors.EcosError("`answers` holds one answer twice: give it once")
  return question_lib.combine(
    [question_lib.read(answer, query) for answer in answers], query
  )


def _discriminant(
  features: chunks.Features,
  book: codebook_lib.Codebook,
  answer: question_lib.Combined,
  key: jax.Array,
) -> labels_lib.Discriminant:
  if answer.sums is None or book.directions is None or len(answer.sums) < 2:
    raise errors.EcosError(
      "`classes` needs an answer by class: give `classes` to `question.ask`"
    )
  return labels_lib.fit(
    features, book.directions, answer.sums, answer.scale, key
  )


def samples(
  features: chunks.Features,
  book: codebook_lib.Codebook,
  answer: question_lib.Combined,
  options: config.Sampling,
  key: jax.Array,
  discriminant: labels_lib.Discriminant | None = None,
  *,
  excluded: np.ndarray = _NONE,
  included: np.ndarray = _NONE,
) -> Choice:
  """Returns the samples that an answer chooses; a prefix is a smaller choice.

  Of the first b samples, b q_r / B are from cluster r, rounded down or up,
  where q_r is its quota; they are the first in the order of
  `sampling.decompress`. So a smaller budget can be taken from the front.

  A choice with the budget b from the beginning may differ. Its quotas differ by
  two at most where no cluster is full, and by more where one is. Its samples of
  a cluster are the same where the quotas are, unless the cluster gives all it
  has (these are in random order) or more than 512 samples or more than the
  shares `likely` and `central` of it, where candidates depend on the quota.

  With a discriminant the budget is first divided among the classes, and each
  class chooses so among the samples of its label, which are clusters of their
  own. Of the first b samples, class k has b B_k / B, rounded down or up.

  Args:
    features: [N, d].
    book: The codebook, of R clusters.
    answer: To the question about it.
    options: The rule, and the budget; `method` must be `ecos` or `ecos_paper`.
    key: Random key.
    discriminant: Of the classes; None: `options.classes` ignores them.
    excluded: int64 [m], samples that are not chosen.
    included: int64 [m], samples that were chosen before: they come first, and
      count towards the budget and the quotas.

  Raises:
    EcosError: The budget is not positive, no cluster has votes, or the rule is
      not for an answer about directions.
  """
  options = options.resolved()
  at, means, votes = _estimated(features, book, answer, options, key)
  covered = scores_lib.covered(votes, book.sizes)
  parts, size = np.ones(1), len(book.sizes)
  if discriminant is not None and at is not None:
    book, votes = _by_class(features, book, at, discriminant)
    parts = np.ones_like(discriminant.voters)
    if options.classes is config.Classes.CLIENT:
      parts = discriminant.voters
  density = scores_lib.density(votes, book.sizes)
  weights = votes * density ** _power(answer, options)
  old = np.asarray(book.assignment[included])
  rest = _without(book, np.concatenate([excluded, included]))
  before = codebook_lib.counts(old, len(book.sizes))
  budget = options.budget - (len(old) - int(before.sum()))
  more = quotas.top_up_parts(parts, weights, rest.sizes, budget, before)
  quota = before + more
  if not quota.any():
    raise errors.EcosError("no cluster has votes: there is nothing to choose")
  chosen = sampling.decompress(
    *(features, rest, density if at is None else at, more, options, key),
    [included[old == r] for r in range(len(before))] if len(old) else (),
  )
  new = quotas.interleave_parts(more.reshape(len(parts), size))
  indices = np.empty(len(new), np.int64)
  indices[np.argsort(new, kind="stable")] = np.concatenate(chosen)
  indices = np.concatenate([included, indices])
  clusters = np.concatenate([old, new])
  own = [] if at is None else [at.cast(chunks.take(features, indices)).mean(0)]
  if answer.scores is not None:
    own.append(quota.reshape(-1, size).sum(axis=0) / quota.sum())
  return Choice(
    indices,
    np.where(clusters < 0, -1, clusters % size).astype(np.int32),
    _weights(votes, quota, clusters),
    worth_lib.estimate(means, np.concatenate(own)),
    covered,
  )


def _estimated(
  features: chunks.Features,
  book: codebook_lib.Codebook,
  answer: question_lib.Combined,
  options: config.Sampling,
  key: jax.Array,
) -> tuple[density_lib.Density | None, worth_lib.Means, np.ndarray]:
  """Returns the density, the client's mean votes, and its votes by cluster.

  The density is known at every sample if the answer is about directions, and
  otherwise None; the votes are float64 [R], up to a factor.

  Raises:
    EcosError: The rule is not for an answer about directions, or leaves no
      cluster.
  """
  if answer.sums is None or book.directions is None:
    assert answer.scores is not None
    voters = max(float(answer.scores.sum()), 1.0)
    means = worth_lib.Means.of_counts(
      answer.scores, book.sizes, answer.sigma, voters
    )
    votes = scores_lib.votes(answer.scores, book.sizes, answer.sigma, options)
    return None, means, votes
  wrong = checks.errors_with_directions(options)
  if wrong:
    raise errors.ConfigError("; ".join(wrong))
  # The noise of the classes adds up with their votes.
  total = answer.sums.sum(axis=0)
  scale = answer.scale * len(answer.sums) ** 0.5
  counts = None
  if answer.scores is not None:
    counts = density_lib.Counts(
      answer.scores, answer.sigma, book.assignment, book.sizes
    )
  at = density_lib.fit(
    features, book.directions, answer.votes, total, scale, key, counts
  )
  votes = at.in_clusters(features, book.assignment, len(book.sizes))
  return at, at.means, votes


def _weights(
  votes: np.ndarray, quota: np.ndarray, clusters: np.ndarray
) -> np.ndarray:
  """Returns the weights of samples: the votes of a cluster, shared by quota."""
  shares = votes / np.maximum(quota, 1)
  shares /= np.repeat(shares, quota).mean()
  return np.where(clusters < 0, 0, shares[clusters]).astype(np.float32)


def _power(answer: question_lib.Combined, options: config.Sampling) -> float:
  """Returns a, the power of a cluster's density in its quota."""
  if options.density_power is not None:
    return options.density_power
  by_class = answer.sums is not None and len(answer.sums) > 1
  return _POWER if answer.sums is None or by_class else 0.0


def _without(
  book: codebook_lib.Codebook, rows: np.ndarray
) -> codebook_lib.Codebook:
  """Returns a codebook in which some rows are in no cluster."""
  if not len(rows):
    return book
  assignment = np.array(book.assignment)
  assignment[rows] = -1
  sizes = codebook_lib.counts(assignment, len(book.sizes))
  return book._replace(assignment=assignment, sizes=sizes)


def _by_class(
  features: chunks.Features,
  book: codebook_lib.Codebook,
  at: density_lib.Density,
  discriminant: labels_lib.Discriminant,
) -> tuple[codebook_lib.Codebook, np.ndarray]:
  """Returns a codebook whose clusters are divided by label, and their votes.

  Its cluster k R + r has the samples of cluster r with label k; it has the R
  centroids, as those of all labels are the same.
  """
  size, classes = len(book.sizes), len(discriminant.voters)
  # In place: of a large pool there is one such array beside the assignment.
  assignment = discriminant.classify(features)
  assignment *= size
  assignment += book.assignment
  assignment[np.asarray(book.assignment) < 0] = -1
  book = book._replace(
    assignment=assignment,
    sizes=codebook_lib.counts(assignment, classes * size),
  )
  if at.levels is not None:
    at = at._replace(levels=np.tile(at.levels, classes))
  return book, at.in_clusters(features, assignment, len(book.sizes))

"""Which samples each cluster gives: its quota, covering it without redundancy.

ECOS, algorithm 1, calls this decompression; the rules inside a cluster are
ours. It post-processes the client's answer, and costs no privacy.

Copies of one row lie in one cluster: one of them is chosen, the others only
when the cluster has nothing else left.

From a large cluster only random candidates are considered, 8 to 16 times its
quota and at least 4,096: so the work does not grow with the pool.
"""

from collections.abc import Iterator, Sequence
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ecos_jax import config
from ecos_jax import threads
from ecos_jax.cloud import codebook
from ecos_jax.cloud import density as density_lib
from ecos_jax.cloud import nearby
from ecos_jax.clustering import assign
from ecos_jax.clustering import centring
from ecos_jax.clustering import chunks
from ecos_jax.clustering import start as start_lib

_CANDIDATES_PER_SAMPLE = 8
_MIN_CANDIDATES = 4096
# Rows of the assignment to read at a time.
_SCAN_ROWS = 1 << 22
# Candidates to compare at a time.
_GROUP_ROWS = 1 << 15
_CPU_GROUP_ROWS = 1 << 14
_MIN_WIDTH = 64
# Groups that are prepared ahead, each by a thread.
_THREADS = 2
# A squared distance has the weight density^power: the higher, the more similar
# are the samples to the client's, and to one another.
_DENSITY_POWER = 0.5
# Of the weight of a sample, which float32 must hold times a squared distance.
_LEAST_LOG = -60.0


@jax.jit
def farthest_first(
  features: jax.Array,
  nearest: jax.Array,
  start: jax.Array,
  steps: jax.Array,
  weights: jax.Array | None = None,
) -> jax.Array:
  """Returns the order of k-center greedy in several sets, int32 [g, m].

  Each step chooses in every set the sample farthest from those chosen before
  (Gonzalez 1985), or that with the largest weight times squared distance (the
  weighted k-center problem: Dyer and Frieze 1985); ties go to the lowest index.
  All sets advance together: a step is one pass over the features.

  Args:
    features: float32 [g, m, d], g sets of m samples.
    nearest: float32 [g, m], squared distance to the nearest earlier choice;
      infinity if there is none; minus infinity for samples never to choose.
    start: int32 [g], the first choice in each set.
    steps: int32, the number of samples to choose in each set.
    weights: float32 [g, m], positive; None: all are 1.

  Returns:
    The step at which each sample was chosen; `steps` or more if it was not.
  """
  sets = jnp.arange(len(features))
  norms = jnp.sum(features * features, axis=2)

  def step(i, carry):
    order, nearest, chosen = carry
    # A set that is used up chooses samples again: their first step counts.
    order = order.at[sets, chosen].min(i)
    products = jnp.einsum(
      "gmd,gd->gm",
      features,
      features[sets, chosen],
      precision=jax.lax.Precision.HIGHEST,
    )
    distances = norms - 2 * products + norms[sets, chosen, None]
    nearest = jnp.minimum(nearest, jnp.maximum(distances, 0))
    nearest = nearest.at[sets, chosen].set(-jnp.inf)
    weighted = nearest if weights is None else nearest * weights
    return order, nearest, assign.argmax(weighted)[1]

  order = jnp.full(nearest.shape, jnp.iinfo(jnp.int32).max, jnp.int32)
  order, _, _ = jax.lax.fori_loop(0, steps, step, (order, nearest, start))
  return order


def _round_up_to_power_of_two(values):
  return 1 << np.ceil(np.log2(np.maximum(values, 1))).astype(np.int64)


def _candidates(
  assignment: np.ndarray, sizes: np.ndarray, quotas: np.ndarray, key: jax.Array
) -> list[np.ndarray]:
  """Returns the candidates of each cluster, int64 [m_r], in random order.

  Every row has a random rank, which depends only on the key and the row. The
  candidates are the rows of a cluster with the lowest ranks.
  """
  limits = np.maximum(_CANDIDATES_PER_SAMPLE * quotas, _MIN_CANDIDATES)
  limits = np.where(
    quotas > 0, np.minimum(_round_up_to_power_of_two(limits), sizes), 0
  )
  # The lowest ranks lie below this bound: six standard deviations of margin.
  bound = (limits + 6 * np.sqrt(limits) + 1) / np.maximum(sizes, 1)
  bound = np.where(limits == sizes, 2.0, bound) * (limits > 0)
  # Rows in no cluster have the label -1, whose bound no rank is below.
  bound = np.append(bound, 0.0)
  random = start_lib.generator(key)
  found = []
  for start in range(0, len(assignment), _SCAN_ROWS):
    labels = np.asarray(assignment[start : start + _SCAN_ROWS])
    ranks = random.random(len(labels))
    rows = np.flatnonzero(ranks < bound[labels])
    found.append((labels[rows], ranks[rows], start + rows))
  labels, ranks, rows = map(np.concatenate, zip(*found, strict=True))
  order = np.argsort(labels + ranks)
  ends = np.searchsorted(labels[order], np.arange(len(sizes) + 1))
  return [
    rows[order[begin : min(begin + limit, end)]]
    for begin, end, limit in zip(ends[:-1], ends[1:], limits, strict=True)
  ]


def _groups(
  candidates: list[np.ndarray], quotas: np.ndarray
) -> Iterator[tuple[list[int], int, int]]:
  """Yields (clusters, sets, width) for each call of `farthest_first`.

  Clusters of similar size and quota go together, so that few steps are spent on
  clusters that are finished. The shapes are powers of two, so that few programs
  are compiled.
  """
  lengths = np.array([len(rows) for rows in candidates])
  widths = np.maximum(_round_up_to_power_of_two(lengths), _MIN_WIDTH)
  order = np.lexsort((-quotas, widths))
  order = order[(quotas > 0)[order]]
  rows = _CPU_GROUP_ROWS if jax.default_backend() == "cpu" else _GROUP_ROWS
  for width in np.unique(widths[order]):
    clusters = order[widths[order] == width]
    sets = max(rows // int(width), 1)
    sets = min(sets, int(_round_up_to_power_of_two(len(clusters))))
    for first in range(0, len(clusters), sets):
      yield clusters[first : first + sets].tolist(), sets, int(width)


def _copies(features: np.ndarray, distances: np.ndarray) -> np.ndarray:
  """Returns which rows are copies of an earlier row, bool [m].

  Args:
    features: float32 [m, d].
    distances: float32 [m], to some point: the same for copies of one row, and
      for few other rows, so that few rows have to be compared.
  """
  copies = np.zeros(len(features), np.bool_)
  order = np.argsort(distances)
  same = np.flatnonzero(np.diff(distances[order]) == 0)
  if len(same):
    tied = np.unique(order[np.concatenate([same, same + 1])])
    # Adding 0 turns -0 into 0, so that equal rows have equal bytes.
    rows = np.ascontiguousarray(features[tied] + np.float32(0))
    rows = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]
    copies[tied] = True
    copies[tied[np.unique(rows, return_index=True)[1]]] = False
  return copies


def _among(
  features: np.ndarray,
  density: np.ndarray,
  distances: np.ndarray,
  ranks: np.ndarray,
  quota: int,
  options: config.Sampling,
) -> np.ndarray:
  """Returns the samples of a cluster to choose from, the nearest first.

  Of the distinct samples these are the share `likely` with the highest density,
  and of that the share `central` nearest to the centroid, but at least `quota`.
  Copies of other samples come last.

  Args:
    features: float32 [m, d].
    density: float64 [m], or its logarithm.
    distances: float32 [m], to the centroid.
    ranks: int64 [m], random order of samples with the same density.
    quota: Number of samples that will be chosen; at most m.
    options: `likely` and `central`.
  """
  copies = _copies(features, distances)
  limit = math.ceil(options.likely * np.count_nonzero(~copies))
  among = np.argsort(ranks)
  among = among[np.lexsort((-density[among], copies[among]))]
  among = among[: max(quota, limit)]
  limit = math.ceil(options.central * limit)
  order = np.lexsort((distances[among], copies[among]))
  return among[order[: max(quota, limit)]]


@jax.jit
def _distances(features: jax.Array, centroids: jax.Array) -> jax.Array:
  """Returns squared distances of [g, m, d] to [g, d] in each set, [g, m]."""
  return jnp.square(features - centroids[:, None]).sum(axis=2)


def _gaps(features: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns the squared distance of each row to the nearest of others, [m]."""
  nearest = np.full(len(features), np.inf, np.float32)
  for start in range(0, len(others), _MIN_WIDTH):
    some = others[start : start + _MIN_WIDTH]
    gaps = np.sum(some * some, axis=1) - 2 * features @ some.T
    np.minimum(nearest, gaps.min(axis=1), out=nearest)
  return np.maximum(nearest + np.sum(features * features, axis=1), 0)


class _Group(NamedTuple):
  """Clusters that are ordered in one call.

  Attributes:
    clusters: Their indices, g of them or fewer.
    members: The candidates of each, int64 [m], sorted.
    order: int [g, w], the order of their candidates but for `kcenter`.
    inputs: Arguments of `farthest_first`.
  """

  clusters: list[int]
  members: list[np.ndarray]
  order: np.ndarray
  inputs: tuple


def _prepared(
  features: chunks.Features,
  candidates: list[np.ndarray],
  book: codebook.Codebook,
  density: nearby.Interpolation | density_lib.Density,
  quotas: np.ndarray,
  options: config.Sampling,
  before: Sequence[np.ndarray],
  group: tuple[list[int], int, int],
) -> _Group:
  """Reads the candidates of a group from `_groups`, and what orders them."""
  clusters, sets, width = group
  padded = np.zeros((sets, width, features.shape[1]), np.float32)
  order = np.full((sets, width), width)
  nearest = np.full((sets, width), -np.inf, np.float32)
  first = np.zeros(sets, np.int32)
  members = [np.sort(candidates[r]) for r in clusters]
  taken = chunks.take(features, np.concatenate(members))
  parts = np.split(taken, np.cumsum([len(rows) for rows in members])[:-1])
  for i, part in enumerate(parts):
    padded[i, : len(part)] = part
  at, weights = np.zeros((sets, width)), None
  if isinstance(density, density_lib.Density):
    at = density.log_at(padded.reshape(sets * width, -1)).reshape(sets, width)
    weights = np.ones((sets, width), np.float32)
  else:
    density.fill(at, padded, [len(part) for part in parts], clusters)
  centroids = np.zeros((sets, features.shape[1]), np.float32)
  centroids[: len(clusters)] = book.centroids[
    np.array(clusters) % len(book.centroids)
  ]
  distances = np.asarray(_distances(padded, centroids))
  for i, (r, part) in enumerate(zip(clusters, parts, strict=True)):
    # The candidates are in random order: their places among sorted rows.
    ranks = np.argsort(candidates[r])
    logs, gaps = at[i, : len(part)], distances[i, : len(part)]
    among = _among(part, logs, gaps, ranks, int(quotas[r]), options)
    nearest[i, among] = np.inf
    first[i] = among[0]
    if weights is not None:
      logs = logs - logs[among].max()
      logs = np.clip(_DENSITY_POWER * logs, _LEAST_LOG, 0)
      weights[i, : len(part)] = np.exp(logs)
      first[i] = among[np.argmax(logs[among])]
    if len(before) and len(before[r]):
      nearest[i, among] = _gaps(part[among], chunks.take(features, before[r]))
      far = nearest[i] if weights is None else nearest[i] * weights[i]
      first[i] = np.argmax(far)
    if options.within is config.Within.RANDOM:
      among = among[np.argsort(ranks[among])]
    order[i, among] = np.arange(len(among))
  steps = np.int32(quotas[clusters].max())
  inputs = padded, nearest, first, steps, weights
  return _Group(clusters, members, order, inputs)


def _ordered(
  group: _Group, options: config.Sampling
) -> tuple[list[int], list[np.ndarray], np.ndarray | jax.Array]:
  """Returns the clusters, their candidates and the order of these [g, w]."""
  order = group.order
  if options.within is config.Within.KCENTER:
    order = farthest_first(*group.inputs)
  return group.clusters, group.members, order


def decompress(
  features: chunks.Features,
  book: codebook.Codebook,
  density: np.ndarray | density_lib.Density,
  quotas: np.ndarray,
  options: config.Sampling,
  key: jax.Array,
  before: Sequence[np.ndarray] = (),
) -> list[np.ndarray]:
  """Returns the samples chosen from each cluster, R arrays int64 [quota].

  The samples of a cluster are in the order of their choice. `within=kcenter`
  begins with the sample nearest to the centroid and always adds the one
  farthest from all chosen; where the density is known at every sample, it
  begins with the densest, and adds the one with the largest product of the root
  of its density and its squared distance to all chosen. `nearest` goes from the
  centroid outwards; `random` is random, as is the order of a cluster that gives
  all it has.

  They choose among the candidates (see the module): first the share `likely`
  where the client's samples are densest, by interpolation between the nearby
  centroids if the density is that of clusters; of these the share `central`
  that is nearest to the centroid, since k-center takes outliers first.

  Args:
    features: [N, d].
    book: The codebook, of R clusters. Where each is divided further, it has
      K R clusters, and cluster k R + r is around centroid r.
    density: Of the client's samples over the pool's, up to a factor: float64
      [R] for each cluster, or at every sample.
    quotas: int64 [R], how many to take; at most the size of the cluster.
    options: `within`, `likely`, `central`.
    key: Random key: of the candidates, and of `random`.
    before: R arrays int64, rows of each cluster that were chosen before and
      are no longer in `book`: `kcenter` keeps away from them. Empty: none were.
  """
  if np.any(quotas > book.sizes):
    raise ValueError("a quota is larger than its cluster")
  offset = centring.offset(book.centroids)
  features = centring.without(features, offset)
  book = book._replace(centroids=book.centroids - offset)
  candidates = _candidates(book.assignment, book.sizes, quotas, key)
  chosen = list(candidates)
  partial = np.where(quotas < book.sizes, quotas, 0)
  if isinstance(density, density_lib.Density):
    at = density.without(offset)
  else:
    wanted = np.flatnonzero(partial)
    at = nearby.Interpolation.of(book.centroids, density, wanted)
  progress = tqdm.tqdm(
    total=int(partial.sum()), desc="sampling", unit=" samples", disable=None
  )
  with progress:
    prepare = functools.partial(
      _prepared, features, candidates, book, at, partial, options, before
    )
    groups = threads.ahead(prepare, _groups(candidates, partial), _THREADS)
    # The devices order one group while threads prepare the next.
    for clusters, members, order in chunks.one_ahead(
      _ordered(group, options) for group in groups
    ):
      order = np.asarray(order)
      for r, rows, places in zip(clusters, members, order, strict=False):
        first = np.argsort(places[: len(rows)], kind="stable")[: quotas[r]]
        chosen[r] = rows[first]
      progress.update(int(quotas[clusters].sum()))
  return chosen

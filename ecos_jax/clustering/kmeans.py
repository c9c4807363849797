"""k-means on any number of rows, in memory or streamed, on one or more devices.

Rows pass through the devices in chunks, each sharded over the mesh axis 'data'.
Per chunk, only sums [k, d] and counts [k] leave the devices. The host adds them
up in float64; all processes get the same numbers, so all decide alike. Chunks
that fit the memory budget stay on the devices; otherwise each pass reads the
rows again.

Two things make passes over all rows few and cheap. The start is nested: Lloyd's
iterations run on a small sample, then on twice as many rows, and so on, so that
they have nearly converged when they reach all rows. And rows whose nearest
centroid cannot have changed are not compared again (`lloyd.pruned`).

    >>> corners = np.array([[0, 0], [0, 9], [9, 0]], np.float32)
    >>> features = np.repeat(corners, 50, axis=0)
    >>> result = fit(features, 3, jax.random.key(0))
    >>> sorted(result.centroids.tolist()), result.sizes.tolist()
    ([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]], [50, 50, 50])
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ecos_jax import errors
from ecos_jax.clustering import assign
from ecos_jax.clustering import centring
from ecos_jax.clustering import chunks
from ecos_jax.clustering import lloyd
from ecos_jax.clustering import start as start_lib

_MEMORY_BUDGET = 2 << 30
# With fewer centroids the matrix product is too cheap for pruning to pay.
_MIN_PRUNED_CENTROIDS = 256
# If more rows than this share are compared, a pruned pass costs more than a
# plain one.
_MAX_COMPARED = 0.8


class KMeans(NamedTuple):
  """A clustering of the rows that were fitted, as numpy arrays.

  Attributes:
    centroids: float32 [k, d].
    sizes: int64 [k], the number of rows nearest to each centroid.
    inertia: float64 [iterations + 1], the sum of squared distances before each
      iteration on all rows; the last one is that of `centroids`.
    iterations: Number of iterations on all rows.
    converged: Whether the inertia stopped falling.
    reseeded: Number of times that an empty cluster was moved to a far row.
  """

  centroids: np.ndarray
  sizes: np.ndarray
  inertia: np.ndarray
  iterations: int
  converged: bool
  reseeded: int


class _Passes:
  """Passes over the same rows, pruned where that pays.

  Only chunks that stay on the devices are pruned: their bounds stay there too.
  """

  def __init__(self, features, plan, mesh, *, resident: bool, prune: bool):
    self._features = features
    self._plan = plan
    self.mesh = mesh
    self._kept = (
      list(chunks.read(features, plan.chunk, mesh)) if resident else None
    )
    self._prune = prune and resident
    self._bounds: list[lloyd.Bounds] | None = None
    self._before = np.zeros(0)
    # Plain passes until pruning is tried again, and how many follow if it does
    # not pay.
    self._wait = 0
    self._patience = 1

  def _parts(self, centroids: np.ndarray) -> Iterable[lloyd.Sums]:
    options = {"mesh": self.mesh, "block": self._plan.block}
    device_centroids = jnp.asarray(centroids)
    if not self._prune or self._wait:
      self._wait = max(self._wait - 1, 0)
      self._bounds = None
      parts = self._kept or chunks.read(
        self._features, self._plan.chunk, self.mesh
      )
      for _, valid, chunk in parts:
        yield lloyd.plain(chunk, valid, device_centroids, **options)
      return
    assert self._kept is not None
    first = self._bounds is None
    bounds = self._bounds or [
      lloyd.no_bounds(self._plan.chunk, self.mesh) for _ in self._kept
    ]
    moves = lloyd.moves(centroids if first else self._before, centroids)
    self._bounds = []
    compared = []
    for (_, valid, chunk), known in zip(self._kept, bounds, strict=True):
      sums, known = lloyd.pruned(
        chunk, valid, known, moves, device_centroids, **options
      )
      self._bounds.append(known)
      compared.append(sums.compared)
      yield sums
    self._before = centroids.copy()
    rows = sum(map(int, compared))
    if not first and rows > _MAX_COMPARED * self._features.shape[0]:
      self._wait = self._patience
      self._patience *= 2

  def run(self, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns float64 [k, d] sums, int64 [k] counts, and the inertia."""
    return total(self._parts(centroids))

  def farthest(self, centroids: np.ndarray, count: int) -> np.ndarray:
    """Returns the `count` rows farthest from their centroid, float32 [m, d].

    The farthest is first; rows that equal their centroid are left out.
    """
    distances = np.zeros(0, np.float32)
    rows = np.zeros(0, np.int64)
    for start, part in assign.stream(self._features, centroids, mesh=self.mesh):
      distances = np.concatenate([distances, part.distances])
      rows = np.concatenate([rows, start + np.arange(len(part.labels))])
      kept = np.argsort(-distances, kind="stable")[:count]
      distances, rows = distances[kept], rows[kept]
    far = chunks.take(self._features, rows)
    # Rounding gives a row that equals its centroid a small distance.
    return far[distances > 1e-6 * np.sum(far * far, axis=1)]


def check_size(k: int, n: int) -> None:
  """Raises EcosError unless k, the number of centroids, lies in 1..n."""
  if not 1 <= k <= n:
    raise errors.EcosError(
      f"the number of centroids must lie between 1 and the number of samples, "
      f"{n}, got {k}"
    )


def total(parts: Iterable) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns the sums float64 [k, d], counts int64 [k] and inertia of all parts.

  Args:
    parts: Tuples that begin with the sums [k, d], counts [k] and inertia of a
      chunk. Each is dispatched when it is asked for, and fetched while the next
      is computed.

  Raises:
    EcosError: The inertia is not finite.
  """
  sums, counts = np.float64(0), np.int64(0)
  inertia = 0.0
  for part in chunks.one_ahead(parts):
    sums = sums + np.asarray(part[0], np.float64)
    counts = counts + np.asarray(part[1], np.int64)
    inertia += float(part[2])
  if not np.isfinite(inertia):
    raise errors.EcosError("`features` hold NaN or infinite values")
  return np.asarray(sums), np.asarray(counts), inertia


def _in_memory(features: chunks.Rows, rows: int) -> np.ndarray:
  array = np.empty(features.shape, features.dtype)
  for start, block in features.blocks(rows):
    array[start : start + len(block)] = block
  return array


class _Lloyd(NamedTuple):
  """Lloyd's iterations, and their settings."""

  plan: chunks.Plan
  mesh: jax.sharding.Mesh
  prune: bool
  iterations: int
  tolerance: float
  progress: tqdm.tqdm

  def run(
    self,
    features: chunks.Features,
    centroids: np.ndarray,
    *,
    resident: bool = True,
    share: float = 1.0,
  ) -> KMeans:
    """Returns the clustering that the iterations reach from `centroids`.

    Args:
      features: [n, d].
      centroids: float32 [k, d].
      resident: Whether the features stay on the devices.
      share: Share of all rows that `features` holds. Iterations on few rows are
        cheap: the tolerance is multiplied by the share, and the maximum number
        of iterations divided by it.
    """
    self.progress.set_description(f"k-means on {features.shape[0]:,} rows")
    passes = _Passes(
      features, self.plan, self.mesh, resident=resident, prune=self.prune
    )
    centroids = centroids.copy()
    inertias: list[float] = []
    reseeded = 0
    while True:
      sums, counts, inertia = passes.run(centroids)
      inertias.append(inertia)
      self.progress.set_postfix(inertia=f"{inertia:.6g}")
      empty = np.flatnonzero(counts == 0)
      far = centroids[:0]
      if len(empty):
        far = passes.farthest(centroids, len(empty))
      converged = (
        not len(far)
        and len(inertias) > 1
        and inertias[-2] - inertia <= self.tolerance * share * inertias[-2]
      )
      if converged or len(inertias) > int(self.iterations / share):
        break
      occupied = counts > 0
      centroids[occupied] = sums[occupied] / counts[occupied, None]
      centroids[empty[: len(far)]] = far
      reseeded += len(far)
      self.progress.update()
    return KMeans(
      centroids,
      counts,
      np.asarray(inertias),
      len(inertias) - 1,
      bool(converged),
      reseeded,
    )

  def start(
    self,
    features: chunks.Features,
    k: int,
    key: jax.Array,
    limit: float,
  ) -> np.ndarray:
    """Returns the first centroids, from k-means|| and nested samples.

    Args:
      features: [n, d].
      k: Number of centroids.
      key: Random key.
      limit: Maximum number of rows of a nested sample.
    """
    n = features.shape[0]
    centroids = start_lib.centroids(features, k, key, self.mesh)
    # Whole chunks, so that all sizes share compiled code.
    chunk = self.plan.chunk
    size = -(-start_lib.sample_rows(n, k) // chunk) * chunk
    while size <= limit:
      rows = start_lib.subsample(n, size, jax.random.fold_in(key, size))
      sample = chunks.take(features, rows)
      centroids = self.run(sample, centroids, share=size / n).centroids
      size *= 2
    return centroids


def fit(
  features: jax.Array | chunks.Features,
  k: int,
  key: jax.Array,
  *,
  init: jax.typing.ArrayLike | None = None,
  iterations: int = 50,
  tolerance: float = 1e-4,
  sample: int | None = None,
  prune: bool = True,
  mesh: jax.sharding.Mesh | None = None,
  memory_budget: int = _MEMORY_BUDGET,
) -> KMeans:
  """Returns k centroids by Lloyd's algorithm (Lloyd 1982), from k-means||.

  Deterministic given the key. On other numbers of devices, and for features
  that are streamed rather than pruned in memory, results differ by rounding. An
  empty cluster moves to the row farthest from its centroid. A large common
  offset of the features is subtracted while fitting (`centring`).

  Args:
    features: float16, bfloat16 or float32 [n, d]: an array or a feature bank.
    k: Number of centroids.
    key: Random key.
    init: The first centroids, [k, d]; None for k-means|| on a sample, and
      iterations on samples that double before those on all rows.
    iterations: Maximum number of iterations; on a nested sample it grows as
      the sample is smaller.
    tolerance: Stops when the inertia falls by less than this share of it; on a
      nested sample it shrinks with the sample.
    sample: Number of random rows to fit on, which every process holds in
      memory; 256 for each centroid are plenty. None, or n or more: all rows.
    prune: Whether to skip rows whose nearest centroid cannot have changed,
      where that pays.
    mesh: Devices to share the rows; None for one.
    memory_budget: Bytes of features to keep on the devices; larger features are
      read again in each pass. Nested samples take no more.

  Raises:
    EcosError: k does not lie in 1..n, or features are not finite.
  """
  features = chunks.checked(features)
  n, d = features.shape
  check_size(k, n)
  mesh = mesh or chunks.single_device_mesh()
  sample_key, start_key = jax.random.split(key)
  if sample is not None and sample < n:
    n = max(sample, k)
    rows = start_lib.subsample(features.shape[0], n, sample_key)
    features = chunks.take(features, rows)
  offset = centring.offset(features)
  features = centring.without(features, offset)
  resident = n * d * features.dtype.itemsize <= memory_budget
  plan = chunks.plan((n, d), k, mesh)
  if resident and not isinstance(features, np.ndarray):
    features = _in_memory(features, plan.chunk)
  if resident and init is not None:
    # Nested samples would share compiled code with all rows.
    plan = chunks.plan((n, d), k, mesh, in_memory=True)
  # On GPU the plain step is one kernel, and the pruned one is not.
  on_gpu = mesh.devices.flat[0].platform == "gpu"
  prune = prune and k >= _MIN_PRUNED_CENTROIDS and not on_gpu

  with tqdm.tqdm(desc="k-means", unit=" iterations", disable=None) as progress:
    solver = _Lloyd(plan, mesh, prune, iterations, tolerance, progress)
    if init is None:
      limit = min(0.7 * n, memory_budget // (4 * d))
      centroids = solver.start(features, k, start_key, limit)
    elif np.shape(init) == (k, d):
      centroids = np.asarray(init, np.float32) - offset
    else:
      raise ValueError(f"`init` must be [{k}, {d}], got {list(np.shape(init))}")
    fitted = solver.run(features, centroids, resident=resident)
  return fitted._replace(centroids=fitted.centroids + offset)

"""k-means on any number of rows: in memory or streamed, on one device or many.

Rows pass through the devices in chunks, each sharded over the mesh axis 'data'.
Per chunk only the [k, d] sums and [k] counts leave the devices; they are added
up in float64 on the host, the same numbers in every process, so that all
processes decide alike. Chunks that fit the memory budget stay on the devices;
others are read again for every pass.

Few passes over everything are needed, for two reasons. The start is nested:
Lloyd's iterations run on a small sample first, then on twice as many rows, and
so on, so that the iterations on all rows begin near their end. And rows whose
nearest centroid cannot have changed are not compared again (`lloyd.pruned`).

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
from ecos_jax.clustering import chunks
from ecos_jax.clustering import lloyd
from ecos_jax.clustering import start as start_lib

# Rows a centroid that are ample to fit on.
SAMPLE_PER_CENTROID = 256
_MEMORY_BUDGET = 2 << 30
# With fewer centroids the product is too cheap for pruning to pay.
_MIN_PRUNED_CENTROIDS = 256
# A pruned step costs more than a plain one if most rows are compared.
_MAX_COMPARED = 0.8


class KMeans(NamedTuple):
  """A clustering, as numpy arrays.

  Attributes:
    centroids: float32 [k, d].
    sizes: int64 [k], how many of the rows fitted on are nearest to each.
    inertia: float64 [iterations + 1], the sum of squared distances before each
      iteration on all of these rows; the last is that of `centroids`.
    iterations: How often the centroids were moved there.
    converged: Whether the inertia stopped falling.
    reseeded: How many empty clusters were moved to a far sample.
  """

  centroids: np.ndarray
  sizes: np.ndarray
  inertia: np.ndarray
  iterations: int
  converged: bool
  reseeded: int


class _Passes:
  """Passes over the same rows, pruned where that pays.

  Bounds are kept with the chunks, so only chunks in memory are pruned.
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
    # Plain passes before the next attempt, and after it if it fails.
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
    """Returns up to `count` rows, float32 [m, d], the farthest first."""
    distances = np.zeros(0, np.float32)
    rows = np.zeros(0, np.int64)
    for start, part in assign.stream(self._features, centroids, mesh=self.mesh):
      distances = np.concatenate([distances, part.distances])
      rows = np.concatenate([rows, start + np.arange(len(part.labels))])
      kept = np.argsort(-distances, kind="stable")[:count]
      distances, rows = distances[kept], rows[kept]
    far = chunks.take(self._features, rows)
    # What rounding makes of a sample on its centroid is no distance.
    return far[distances > 1e-6 * np.sum(far * far, axis=1)]


def check_size(k: int, n: int) -> None:
  """Raises EcosError unless k, the number of centroids, lies in 1..n."""
  if not 1 <= k <= n:
    raise errors.EcosError(
      f"the number of centroids must lie between 1 and the number of samples, "
      f"{n}, got {k}"
    )


def total(parts: Iterable) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns float64 [k, d] sums, int64 [k] counts, and the inertia of chunks.

  Args:
    parts: Sums [k, d], counts [k] and inertia of each, first in a tuple and
      dispatched when asked for; one is fetched while the next is computed.

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


def _lloyd(
  passes: _Passes,
  centroids: np.ndarray,
  iterations: int,
  tolerance: float,
  progress: tqdm.tqdm,
) -> KMeans:
  """Returns the clustering that Lloyd's iterations reach from `centroids`."""
  centroids = centroids.copy()
  inertias: list[float] = []
  reseeded = 0
  while True:
    sums, counts, inertia = passes.run(centroids)
    inertias.append(inertia)
    progress.set_postfix(inertia=f"{inertia:.6g}")
    empty = np.flatnonzero(counts == 0)
    far = (
      passes.farthest(centroids, len(empty)) if len(empty) else centroids[:0]
    )
    converged = (
      not len(far)
      and len(inertias) > 1
      and inertias[-2] - inertia <= tolerance * inertias[-2]
    )
    if converged or len(inertias) > iterations:
      break
    occupied = counts > 0
    centroids[occupied] = sums[occupied] / counts[occupied, None]
    centroids[empty[: len(far)]] = far
    reseeded += len(far)
    progress.update()
  return KMeans(
    centroids,
    counts,
    np.asarray(inertias),
    len(inertias) - 1,
    bool(converged),
    reseeded,
  )


def fit(
  features: jax.Array | chunks.Features,
  k: int,
  key: jax.Array,
  *,
  init: jax.typing.ArrayLike | None = None,
  iterations: int = 50,
  tolerance: float = 1e-4,
  sample: int | None = None,
  nested: bool = True,
  prune: bool = True,
  mesh: jax.sharding.Mesh | None = None,
  memory_budget: int = _MEMORY_BUDGET,
) -> KMeans:
  """Returns k centroids by Lloyd's algorithm (Lloyd 1982), from k-means||.

  The same for a key; on other numbers of devices, and streamed where it would
  be pruned in memory, to rounding. An empty cluster moves to the sample
  farthest from its centroid.

  Args:
    features: [n, d], an array or a feature bank; float16, bfloat16 or float32.
    k: Number of centroids.
    key: Random key.
    init: The first centroids, [k, d]; None for k-means|| on a sample.
    iterations: Moves of the centroids at most; on a nested sample as many more
      as it has fewer rows.
    tolerance: Stops when the inertia falls by less than this share of it; on a
      nested sample, by a share that is as much smaller.
    sample: Rows to fit on, drawn at random, in the memory of every process;
      256 k is ample. None or n and more: all of them.
    nested: Whether to iterate on samples that double before all rows; not with
      `init`.
    prune: Whether to spare rows whose nearest centroid cannot have changed,
      where that pays.
    mesh: Devices to share the rows; None for one.
    memory_budget: Bytes of features to keep on the devices; what is larger is
      read again in each pass. No nested sample takes more.

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
  nested = nested and init is None
  resident = n * d * features.dtype.itemsize <= memory_budget
  plan = chunks.plan((n, d), k, mesh)
  if resident and not isinstance(features, np.ndarray):
    features = _in_memory(features, plan.chunk)
  if resident and not nested:
    # Nested samples would share compiled code with all rows.
    plan = chunks.plan((n, d), k, mesh, in_memory=True)
  # On GPU the plain step is one kernel, and the pruned one is not.
  on_gpu = mesh.devices.flat[0].platform == "gpu"
  prune = prune and k >= _MIN_PRUNED_CENTROIDS and not on_gpu

  with tqdm.tqdm(desc="k-means", unit=" iterations", disable=None) as progress:
    if init is None:
      rows = start_lib.subsample(n, start_lib.sample_rows(n, k), start_key)
      centroids = start_lib.centroids(
        chunks.take(features, rows), k, start_key, mesh
      )
      # Whole chunks, so that all sizes share compiled code.
      size = -(-len(rows) // plan.chunk) * plan.chunk
      while nested and size <= min(0.7 * n, memory_budget // (4 * d)):
        level_key = jax.random.fold_in(start_key, size)
        part = chunks.take(features, start_lib.subsample(n, size, level_key))
        # As much gain for the work as in the last iteration on all rows.
        work = size / n
        progress.set_description(f"k-means on {size:,} rows")
        centroids = _lloyd(
          _Passes(part, plan, mesh, resident=True, prune=prune),
          centroids,
          int(iterations / work),
          tolerance * work,
          progress,
        ).centroids
        size *= 2
    else:
      centroids = np.array(init, np.float32)
    if centroids.shape != (k, d):
      raise ValueError(f"init must be [{k}, {d}], got {list(centroids.shape)}")
    progress.set_description(f"k-means on {n:,} rows")
    return _lloyd(
      _Passes(features, plan, mesh, resident=resident, prune=prune),
      centroids,
      iterations,
      tolerance,
      progress,
    )

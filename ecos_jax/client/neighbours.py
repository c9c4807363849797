"""The votes of Private-kNN: the classes of the k nearest in a subsample.

The privacy of the labels rests on one fact: adding a sample casts one vote on a
request and displaces at most one other. So the order of the others must not
depend on it, and distances are exact as in `coverage`: features are rounded to
so few bits that double precision adds their products without any error, and the
other operations are on single numbers. Samples at equal distances stay in the
order of the data, which adding a sample does not change.

The device compares blocks of requests with blocks of private samples, and
carries the k nearest so far from one block of samples to the next.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax.client import coverage

_MEMORY_BUDGET = 2**28
# Bytes per pair of request and sample: products, distances, keys, order.
_PAIR_BYTES = 32
# Bytes for a count of a class: OpenDP takes and gives lists of integers.
_COUNT_BYTES = 128
_SAMPLES = 2**14
_REQUESTS = 2**9
# Larger distances count as this; minus infinity marks who does not vote.
_FARTHEST = float(np.finfo(np.float32).max)

_Nearest = tuple[jax.Array, jax.Array]


@jax.jit
def _merge(
  nearest: _Nearest,
  requests: jax.Array,
  points: jax.Array,
  labels: jax.Array,
  taken: jax.Array,
) -> _Nearest:
  """Returns the k nearest, among those so far and a block of samples.

  Args:
    nearest: Those so far: keys [b, k], the negative squared distances in
      descending order, and labels [b, k].
    requests: [b, d] float64, from `coverage.centred`.
    points: The samples, [n, d] float64, from `coverage.centred`.
    labels: Their labels, [n].
    taken: [b, n] bool, which samples are in each request's subsample.
  """
  keys, classes = nearest
  k = keys.shape[1]
  distances = (
    jnp.sum(requests * requests, axis=1)[:, None]
    - 2 * (requests @ points.T)
    + jnp.sum(points * points, axis=1)
  )
  new = -jnp.minimum(distances, _FARTHEST).astype(jnp.float32)
  new = jnp.where(taken, new, -jnp.inf)
  # Equal keys keep their order, and those so far come first.
  keys, places = jax.lax.top_k(jnp.concatenate([keys, new], axis=1), k)
  old = jnp.take_along_axis(classes, jnp.minimum(places, k - 1), axis=1)
  return keys, jnp.where(places < k, old, labels[places - k])


class Neighbours:
  """Private samples that vote on requests.

  Attributes:
    rows: The largest number of requests that `votes` takes.
  """

  def __init__(
    self,
    features: np.ndarray,
    labels: np.ndarray,
    k: int,
    classes: int,
    offset: np.ndarray | None = None,
    memory_budget: int = _MEMORY_BUDGET,
  ):
    """Prepares the samples.

    Args:
      features: [n, d] float; a NaN or an infinity counts as the offset.
      labels: [n] integers in [0, classes).
      k: Number of samples that vote on a request, or the whole subsample if it
        is smaller.
      classes: C, the number of classes.
      offset: float32 [d], subtracted from samples and requests; it must depend
        on no sample. None for zeros.
      memory_budget: Bytes for the arrays with an entry for each pair of a
        request and a sample, or a class.
    """
    n = len(features)
    self._n = n
    # Without samples there are no votes, but the arrays need a row.
    self._k = max(1, min(k, n))
    self._classes = classes
    self._samples = max(1, min(n, _SAMPLES))
    # Subsampling takes 9 more bytes for each pair: a draw and a flag.
    row_bytes = _PAIR_BYTES * (self._samples + self._k) + 9 * n
    most = memory_budget // max(row_bytes, _COUNT_BYTES * classes)
    self.rows = int(np.clip(most, 1, _REQUESTS))
    pad = -n % self._samples if n else 1
    if offset is None:
      offset = np.zeros(features.shape[1], np.float32)
    self._offset = offset
    points = coverage.centred(features, offset)
    self._points = np.pad(points, ((0, pad), (0, 0)))
    self._labels = np.pad(labels.astype(np.int32), (0, pad))

  def __len__(self) -> int:
    """Returns the number of samples, n; it is private."""
    return self._n

  def votes(self, requests: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Returns the votes of the k nearest in each subsample, [b, C] int64.

    Args:
      requests: [b, d] float32, finite, b at most `rows`.
      taken: [b, n] bool, which samples are in each request's subsample.
    """
    b = len(requests)
    pad = (0, self.rows - b)
    points = coverage.centred(requests, self._offset)
    points = np.pad(points, (pad, (0, 0)))
    taken = np.pad(taken, (pad, (0, len(self._points) - self._n)))
    with jax.enable_x64(True):
      nearest: _Nearest = (
        jnp.full((self.rows, self._k), -jnp.inf, jnp.float32),
        jnp.zeros((self.rows, self._k), jnp.int32),
      )
      for start in range(0, len(self._points), self._samples):
        block = slice(start, start + self._samples)
        nearest = _merge(
          nearest,
          points,
          self._points[block],
          self._labels[block],
          taken[:, block],
        )
      keys, labels = (np.asarray(array) for array in nearest)
    cells = labels + self._classes * np.arange(self.rows)[:, None]
    counts = np.bincount(
      cells[keys > -np.inf], minlength=self.rows * self._classes
    )
    return counts.reshape(self.rows, self._classes)[:b]

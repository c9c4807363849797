"""The client's density at samples, interpolated between nearby clusters.

For an answer about clusters, which tells the density of each alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The density at a sample is interpolated between so many nearby clusters.
_NEIGHBOURS = 8
# Clusters whose neighbours are looked for at a time.
_CLUSTERS = 1024


def _neighbours(centroids: np.ndarray, clusters: np.ndarray) -> np.ndarray:
  """Returns the centroids nearest to those of `clusters`, int64 [g, k]."""
  k = min(_NEIGHBOURS, len(centroids))
  gaps = (centroids**2).sum(axis=1) - 2 * centroids[clusters] @ centroids.T
  return np.argpartition(gaps, k - 1, axis=1)[:, :k]


@jax.jit
def _gaps(
  features: jax.Array, centroids: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns how much farther each centroid is than the nearest of its set.

  Args:
    features: float32 [g, m, d].
    centroids: float32 [g, k, d].

  Returns:
    Squared distances minus the least, float32 [g, k, m], and the third smallest
    of these, float32 [g, m].
  """
  products = jnp.einsum(
    "gmd,gkd->gkm", features, centroids, precision=jax.lax.Precision.HIGHEST
  )
  gaps = jnp.square(centroids).sum(axis=2)[:, :, None] - 2 * products
  gaps -= gaps.min(axis=1, keepdims=True)
  # XLA sorts slowly on CPUs.
  least = [jnp.full_like(gaps[:, 0], jnp.inf)] * min(3, gaps.shape[1])
  for k in range(gaps.shape[1]):
    gap = gaps[:, k]
    for i, other in enumerate(least):
      least[i], gap = jnp.minimum(other, gap), jnp.maximum(other, gap)
  return gaps, least[-1]


def _density(
  gaps: np.ndarray, third: np.ndarray, density: np.ndarray
) -> np.ndarray:
  """Returns the density at samples, [m], interpolated between clusters.

  The mean of their densities with the weights exp(-gap / s), where s is the
  median of `third`.

  Args:
    gaps: float32 [k, m], from `_gaps`.
    third: float32 [m], from `_gaps`.
    density: float64 [k], of the clusters.
  """
  third = np.sort(third)
  # Their median; np.median is slow on so few.
  middle = third[[(len(third) - 1) // 2, len(third) // 2]].mean()
  scale = max(float(middle), np.finfo(np.float32).tiny)
  weights = np.exp(-gaps / scale)
  return density @ weights / weights.sum(axis=0)


class Interpolation(NamedTuple):
  """The density at every sample of some clusters.

  Attributes:
    centroids: float32 [R, d].
    density: float64 [R], of the client's samples over the pool's in each
      cluster, up to a factor.
    around: int64 [R, k], the nearest clusters to each; 0 for other clusters.
  """

  centroids: np.ndarray
  density: np.ndarray
  around: np.ndarray

  @classmethod
  def of(
    cls, centroids: np.ndarray, density: np.ndarray, clusters: np.ndarray
  ) -> "Interpolation":
    """Returns the density at the samples of `clusters`, int64 [g]."""
    k = min(_NEIGHBOURS, len(centroids))
    around = np.zeros((len(centroids), k), np.int64)
    for first in range(0, len(clusters), _CLUSTERS):
      some = clusters[first : first + _CLUSTERS]
      around[some] = _neighbours(centroids, some)
    return cls(centroids, density, around)

  def fill(
    self,
    out: np.ndarray,
    padded: np.ndarray,
    lengths: list[int],
    clusters: list[int],
  ) -> None:
    """Writes the density at samples of each cluster.

    Args:
      out: float64 [g, w], to be filled.
      padded: float32 [g, w, d], samples of each cluster and zeros.
      lengths: Numbers of samples of the clusters; g at most.
      clusters: Their indices.
    """
    around = self.around[clusters]
    near = np.zeros((len(out), around.shape[1], padded.shape[2]), np.float32)
    near[: len(clusters)] = self.centroids[around]
    gaps, third = map(np.asarray, _gaps(padded, near))
    for i, m in enumerate(lengths):
      density = self.density[around[i]]
      out[i, :m] = _density(gaps[i, :, :m], third[i, :m], density)

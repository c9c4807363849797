"""k-means in one pass over a stream: mini-batches with a rate per centroid.

For banks that are too large to be read again for every iteration. Each batch
moves its nearest centroids towards the means of its rows, with a rate of 1 over
the number of rows that the centroid has had so far: so a centroid is the mean
of all rows that were nearest to it when they came (Sculley 2010, algorithm 1).
"""

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ecos_jax.clustering import centring
from ecos_jax.clustering import chunks
from ecos_jax.clustering import kmeans
from ecos_jax.clustering import lloyd
from ecos_jax.clustering import start as start_lib


def fit(
  features: chunks.Features,
  k: int,
  key: jax.Array,
  *,
  init: jax.typing.ArrayLike | None = None,
  batch: int = 8192,
  mesh: jax.sharding.Mesh | None = None,
) -> kmeans.KMeans:
  """Returns k centroids after one pass; one more measures the inertia.

  Rows are read in order, and later rows move a centroid less: rows sorted by
  content give worse centroids. The first centroids are drawn from all rows.
  Memory does not grow with n.

  Args:
    features: float16, bfloat16 or float32 [n, d]: an array or a feature bank.
    k: Number of centroids.
    key: Random key.
    init: The first centroids, [k, d]; None for k-means|| on a sample.
    batch: Rows of a batch.
    mesh: Devices to share the rows of a batch; None for one.

  Returns:
    A clustering whose `inertia` has one value, from the last pass, and whose
    `iterations` counts batches.

  Raises:
    EcosError: k does not lie in 1..n, or features are not finite.
  """
  n, d = features.shape
  kmeans.check_size(k, n)
  mesh = mesh or chunks.single_device_mesh()
  offset = centring.offset(features)
  features = centring.without(features, offset)
  if init is None:
    centroids = start_lib.centroids(features, k, key, mesh)
  else:
    centroids = np.asarray(init, np.float32) - offset
  plan = chunks.plan((min(n, batch), d), k, mesh)
  options = {"mesh": mesh, "block": plan.block}
  seen = np.zeros(k, np.int64)
  moves = 0
  progress = tqdm.tqdm(
    total=n, desc="mini-batch k-means", unit=" rows", disable=None
  )
  with progress:
    for _, valid, chunk in chunks.read(features, plan.chunk, mesh):
      part = lloyd.plain(chunk, valid, jnp.asarray(centroids), **options)
      sums, counts, inertia = kmeans.total([part])
      seen += counts
      moved = counts > 0
      rates = 1 / seen[moved, None]
      means = sums[moved] - counts[moved, None] * centroids[moved]
      centroids[moved] += rates * means
      moves += 1
      progress.set_postfix(inertia=f"{inertia / valid:.6g} a row")
      progress.update(valid)
  fixed = jnp.asarray(centroids)
  _, sizes, inertia = kmeans.total(
    lloyd.plain(chunk, valid, fixed, **options)
    for _, valid, chunk in chunks.read(features, plan.chunk, mesh)
  )
  return kmeans.KMeans(
    centroids + offset,
    sizes,
    np.array([inertia]),
    moves,
    converged=False,
    reseeded=0,
  )

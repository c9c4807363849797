"""Public directions that a client's samples vote on.

The directions are whitened principal components of the pool. Each sample has
the coordinates z = directions (x - mean), and votes with the sign of z on the m
directions where z is largest in size. `density` says what the votes tell.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ecos_jax import errors
from ecos_jax.clustering import chunks
from ecos_jax.clustering import start as start_lib

# Up to so many dimensions the whole covariance is computed, in one pass.
_EXACT = 1024
# Halko, Martinsson and Tropp 2011: directions beyond those asked for, and
# multiplications by the covariance after the first.
_OVERSAMPLING = 16
_POWERS = 2
# Smaller variances, relative to the largest, are rounding.
_LEAST_VARIANCE = 1e-6
# Rows whose mean is near that of all: no large numbers are subtracted.
_SHIFT_ROWS = 4096
# Rows that stand for the pool where a density is fitted.
_FITTED_ROWS = 1 << 15
_EVERYWHERE = jax.P()
_HIGHEST = jax.lax.Precision.HIGHEST


class Directions(NamedTuple):
  """Directions through the pool's mean.

  Attributes:
    axes: float32 [p, d], of float16 numbers. Their coordinates of the pool are
      uncorrelated and have one variance.
    mean: float32 [d].
  """

  axes: np.ndarray
  mean: np.ndarray


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _moments(chunk, valid, shift, basis, *, mesh, block):
  """Returns sums over the rows r = x - shift of a chunk: r, and r^T (r basis).

  Args:
    chunk: [rows, d].
    valid: int32, how many of the rows count.
    shift: float32 [d].
    basis: float32 [d, l]; None for the identity.
    mesh: The devices that share the chunk.
    block: Rows to compute with at a time.
  """

  def local(chunk, valid, shift, basis):
    def body(carry, start, features, fresh):
      del start
      total, product = carry
      rows = jnp.where(fresh[:, None], features.astype(jnp.float32) - shift, 0)
      right = rows
      if basis is not None:
        right = jnp.dot(rows, basis, precision=_HIGHEST)
      product += jnp.dot(rows.T, right, precision=_HIGHEST)
      return total + rows.sum(axis=0), product

    d = chunk.shape[1]
    columns = d if basis is None else basis.shape[1]
    zeros = jnp.zeros(d), jnp.zeros((d, columns))
    sums = chunks.scan_blocks(body, zeros, chunk, valid, block)
    return jax.lax.psum(sums, "data")

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(jax.P("data"), _EVERYWHERE, _EVERYWHERE, _EVERYWHERE),
    out_specs=_EVERYWHERE,
  )(chunk, valid, shift, basis)


def _pass(
  features: chunks.Features,
  shift: np.ndarray,
  basis: np.ndarray | None,
  mesh: jax.sharding.Mesh,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and covariance times basis, [d] and [d, l] float64.

  One pass over all rows. The sums of a chunk are float32; those of all chunks
  float64.
  """
  n, d = features.shape
  columns = d if basis is None else basis.shape[1]
  rows, block = chunks.plan(
    features.shape,
    columns,
    mesh,
    in_memory=chunks.shares_memory(features, mesh),
  )
  total, product = np.zeros(d), np.zeros((d, columns))
  for _, valid, chunk in chunks.read(features, rows, mesh):
    sums = _moments(chunk, valid, shift, basis, mesh=mesh, block=block)
    total += np.asarray(sums[0])
    product += np.asarray(sums[1])
  offset = total / n
  known = offset if basis is None else offset @ basis
  return shift + offset, product / n - np.outer(offset, known)


def fit(
  features: chunks.Features | jax.Array,
  size: int,
  key: jax.Array,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> Directions:
  """Returns the whitened first principal components of features.

  Memory does not grow with N. One pass over the features gives mean and
  covariance; above 1,024 dimensions three passes give an approximation (Halko,
  Martinsson and Tropp 2011, algorithms 4.4 and 5.3). Deterministic given the
  key; device counts differ by rounding.

  Args:
    features: float16 or float32 [N, d], finite: an array or a feature bank.
    size: p, the number of directions; at most d.
    key: Random key.
    mesh: Devices to share the rows; None for one.

  Raises:
    EcosError: `features` or `size` are refused; it calls the size `directions`.
  """
  features = chunks.checked(features)
  n, d = features.shape
  if not 1 <= size <= d:
    raise errors.EcosError(
      f"`directions` must lie between 1 and the length of a feature, {d}, got "
      f"{size}"
    )
  mesh = mesh or chunks.single_device_mesh()
  rows_key, basis_key = jax.random.split(key)
  rows = start_lib.subsample(n, min(n, _SHIFT_ROWS), rows_key)
  shift = chunks.take(features, rows).mean(axis=0)
  if d <= _EXACT:
    basis = np.eye(d)
    mean, image = _pass(features, shift, None, mesh)
  else:
    columns = min(d, size + _OVERSAMPLING)
    random = start_lib.generator(basis_key)
    basis = random.standard_normal((d, columns), np.float32)
    mean, image = _pass(features, shift, basis, mesh)
    for _ in range(_POWERS):
      basis = np.linalg.qr(image)[0].astype(np.float32)
      _, image = _pass(features, shift, basis, mesh)
  if not np.isfinite(image).all():
    raise errors.EcosError(
      "`features` hold NaN, infinite or too large numbers: no directions"
    )
  # The covariance within the basis, whose columns are orthonormal.
  within = basis.T @ image
  variances, vectors = np.linalg.eigh((within + within.T) / 2)
  order = np.argsort(-variances, kind="stable")[:size]
  if variances[order[0]] <= 0:
    raise errors.EcosError("`features` are all the same: no directions")
  variances = np.maximum(
    variances[order], _LEAST_VARIANCE * variances[order[0]]
  )
  axes = (basis @ vectors[:, order] / np.sqrt(variances)).T
  # The sign of an eigenvector is arbitrary: its largest number is positive.
  largest = np.abs(axes).argmax(axis=1)
  axes *= np.sign(axes[np.arange(size), largest])[:, None]
  # One power of two for all changes no vote, and float16 holds the result.
  axes = np.ldexp(axes, -math.frexp(np.abs(axes).max())[1])
  axes = np.ascontiguousarray(axes, np.float16).astype(np.float32)
  return Directions(axes, mean.astype(np.float32))


@jax.jit
def coordinates(
  features: jax.typing.ArrayLike,
  axes: jax.typing.ArrayLike,
  mean: jax.typing.ArrayLike,
) -> jax.Array:
  """Returns the coordinates of samples, float32 [n, p].

  Args:
    features: float32 [n, d].
    axes: float32 [p, d].
    mean: float32 [d].
  """
  centered = jnp.asarray(features) - mean
  return jnp.dot(centered, jnp.asarray(axes).T, precision=_HIGHEST)


def votes(
  features: jax.typing.ArrayLike,
  axes: jax.typing.ArrayLike,
  mean: jax.typing.ArrayLike,
  count: int,
) -> np.ndarray:
  """Returns the signed votes of samples of the pool, float32 [n, p].

  As `client.coverage.signs`, but in float32: equal coordinates may all vote.

  Args:
    features: float32 [n, d].
    axes: float32 [p, d].
    mean: float32 [d].
    count: m, from 1 to p.
  """
  z = np.asarray(coordinates(features, axes, mean))
  size = np.abs(z)
  # On the host: XLA sorts each row on a CPU, which takes 30 times as long.
  least = np.partition(size, -count, axis=1)[:, -count, None]
  return np.copysign((size >= least) & (size > 0), z, dtype=np.float32)


def sample(n: int, key: jax.Array) -> np.ndarray:
  """Returns random rows that stand for all n, sorted; 32,768 at most."""
  return start_lib.subsample(n, min(n, _FITTED_ROWS), key)

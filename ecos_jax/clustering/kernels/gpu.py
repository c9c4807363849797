"""Nearest centroids on Hopper GPUs: product and argmax in one kernel.

XLA writes the scores [n, k] to device memory and reads them again; here they
stay in registers. Each program has 128 rows. One warpgroup copies tiles of
features and centroids to shared memory, a few steps ahead; two multiply, 64
rows each, and keep the best score and label so far. Features are cut into tiles
as well, so d may be anything.

Hopper's tensor cores take no float32, so a float32 is split into three bfloat16
that add up to it exactly, and the six largest of the nine partial products are
summed, the smallest first, as XLA does on TPU at precision "highest". A tensor
core drops bits as it accumulates, so its sums are short, 32 columns, and added
up in float32 outside. By a model of that (gpu_test.py) the scores are nearer to
the true ones than float32 arithmetic gives; without the short sums, or with
three TensorFloat-32 products, they would be an order of magnitude further off.

No GPU was at hand: the kernel has been compiled for its chip, and interpreted,
but neither run nor timed there.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

# Rows of a multiplying warpgroup, centroids and features of a step.
_ROWS, _CENTROIDS, _FEATURES = 64, 128, 32
_TILE_ROWS = 2 * _ROWS
# Steps in flight: each takes 40 KiB of an SM's 227.
_SLOTS = 5
# Which parts of features and of centroids to multiply: 0 is the largest.
_PAIRS = ((2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0))


def _split(x, rounded):
  """Returns three bfloat16 arrays that add up to float32 x."""
  parts = []
  for _ in range(3):
    high = rounded(x)
    parts.append(high.astype(jnp.bfloat16))
    x = x - high
  return parts


def _multiply(features, centroids_ref):
  """Returns the float32 products of split features and centroids."""

  def accumulate(accumulator):
    for i, j in _PAIRS:
      transposed = centroids_ref.at[j].transpose((1, 0))
      plgpu.wgmma(accumulator, features[i], transposed)
    return accumulator[...]

  shape = (_ROWS, _CENTROIDS)
  return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))


def _kernel(
  features_ref,
  centroids_ref,
  half_norms_ref,
  scores_ref,
  labels_ref,
  features_tile,
  centroids_tile,
  half_norms_tile,
  loaded,
  used,
):
  # For each tile of centroids, the steps go over the features.
  depth = features_ref.shape[1] // _FEATURES
  steps = depth * (centroids_ref.shape[1] // _CENTROIDS)
  slots = half_norms_tile.shape[0]
  first_row = lax.axis_index("tile") * _TILE_ROWS
  warpgroup = lax.axis_index("warpgroup")

  @pl.when(warpgroup == 2)
  def _load():
    plgpu.set_max_registers(40, action="decrease")

    def step(i, _):
      slot = lax.rem(i, slots)

      @pl.when(i >= slots)
      def _wait():
        plgpu.barrier_wait(used.at[slot])

      @pl.when(i < steps)
      def _copy():
        rows = pl.ds(first_row, _TILE_ROWS)
        columns = pl.ds(lax.rem(i, depth) * _FEATURES, _FEATURES)
        centroids = pl.ds(lax.div(i, depth) * _CENTROIDS, _CENTROIDS)
        for source, tile in (
          (features_ref.at[rows, columns], features_tile),
          (centroids_ref.at[:, centroids, columns], centroids_tile),
          (half_norms_ref.at[centroids], half_norms_tile),
        ):
          plgpu.copy_gmem_to_smem(source, tile.at[slot], loaded.at[slot])

    # Shared memory must not go before the last tiles are used.
    lax.fori_loop(0, steps + slots, step, None)

  @pl.when(warpgroup < 2)
  def _compute():
    plgpu.set_max_registers(232, action="increase")
    rows = pl.ds(warpgroup * _ROWS, _ROWS)
    shape = (_ROWS, _CENTROIDS)

    def release(slot):
      # These warps read shared memory as ordinary loads do, and the next copy
      # writes it past them, through the async proxy. A barrier does not order
      # the two; this fence does.
      plgpu.commit_smem()
      plgpu.barrier_arrive(used.at[slot])

    def step(j, best):
      def multiply(i, products):
        slot = lax.rem(j * depth + i, slots)
        plgpu.barrier_wait(loaded.at[slot])
        features = _split(
          features_tile[slot, rows],
          lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
        )
        products += _multiply(features, centroids_tile.at[slot])

        @pl.when(i < depth - 1)
        def _release():
          release(slot)

        return products

      zeros = jnp.zeros(shape, jnp.float32)
      products = lax.fori_loop(0, depth, multiply, zeros)
      slot = lax.rem(j * depth + depth - 1, slots)
      half_norms = half_norms_tile[slot]
      release(slot)
      scores = products - lax.broadcast_in_dim(half_norms, shape, (1,))
      score = jnp.max(scores, axis=1)
      label = lax.broadcasted_iota(jnp.int32, shape, 1)
      equal = scores == lax.broadcast_in_dim(score, shape, (0,))
      label = jnp.min(jnp.where(equal, label, _CENTROIDS), axis=1)
      later = score > best[0]
      return (
        jnp.where(later, score, best[0]),
        jnp.where(later, label + j * _CENTROIDS, best[1]),
      )

    score = jnp.full(_ROWS, -jnp.inf, jnp.float32)
    label = jnp.zeros(_ROWS, jnp.int32)
    score, label = lax.fori_loop(0, steps // depth, step, (score, label))
    rows = pl.ds(first_row + warpgroup * _ROWS, _ROWS)
    scores_ref[rows] = score
    labels_ref[rows] = label


def _pad(x, shape, value=0):
  return jnp.pad(
    x,
    [(0, m - n) for n, m in zip(x.shape, shape, strict=True)],
    constant_values=value,
  )


def nearest(
  features: jax.Array, centroids: jax.Array, interpret=None
) -> tuple[jax.Array, jax.Array]:
  """Returns the largest x.c - |c|^2 / 2 of each row, and its lowest index.

  Args:
    features: [n, d], float32 or what converts to it exactly.
    centroids: float32 [k, d].
    interpret: Parameters of Pallas's interpreter for Mosaic GPU; None compiles.

  Returns:
    float32 [n] scores and int32 [n] labels.
  """
  n, d = features.shape
  k = len(centroids)
  # Nothing is copied for the padding of features that XLA cuts and converts.
  rows = pl.cdiv(n, _TILE_ROWS) * _TILE_ROWS
  width = pl.cdiv(d, _FEATURES) * _FEATURES
  height = pl.cdiv(k, _CENTROIDS) * _CENTROIDS
  half_norms = jnp.sum(centroids * centroids, axis=1) / 2
  half_norms = _pad(half_norms, (height,), jnp.inf)
  # XLA may drop a conversion there and back, but not this.
  parts = _split(
    centroids,
    functools.partial(lax.reduce_precision, exponent_bits=8, mantissa_bits=7),
  )
  parts = _pad(jnp.stack(parts), (3, height, width))
  features = _pad(features.astype(jnp.float32), (rows, width))
  slots = min(_SLOTS, (width // _FEATURES) * (height // _CENTROIDS))

  def tile(shape, dtype):
    row_bytes = _FEATURES * jnp.dtype(dtype).itemsize
    transforms = (
      plgpu.TilingTransform((8, _FEATURES)),
      plgpu.SwizzleTransform(row_bytes),
    )
    return plgpu.SMEM((slots, *shape), dtype, transforms=transforms)

  scores, labels = plgpu.kernel(
    _kernel,
    out_type=(
      jax.ShapeDtypeStruct((rows,), jnp.float32),
      jax.ShapeDtypeStruct((rows,), jnp.int32),
    ),
    grid=(rows // _TILE_ROWS,),
    grid_names=("tile",),
    num_threads=3,
    thread_name="warpgroup",
    scratch_types=(
      tile((_TILE_ROWS, _FEATURES), jnp.float32),
      tile((3, _CENTROIDS, _FEATURES), jnp.bfloat16),
      plgpu.SMEM((slots, _CENTROIDS), jnp.float32),
      plgpu.Barrier(num_arrivals=3, num_barriers=slots),
      plgpu.Barrier(num_arrivals=2, num_barriers=slots),
    ),
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup
    ),
    interpret=interpret,
  )(features, parts, half_norms)
  return scores[:n], labels[:n]

"""Nearest centroids on Hopper GPUs: product and argmax in one kernel.

XLA writes the scores [n, k] to device memory and reads them again; here they
stay in registers. Tensor cores multiply float16: `parts` says how they give
float32's precision. `fast` keeps the largest part of each number alone: one
product, with float16's error.

**Schedule.** One program runs on each multiprocessor and takes tile after tile
of 128 rows. One warpgroup copies to shared memory: the rows, which stay there
for all centroids if they fit, and, a few steps ahead, tiles of 128 centroids x
64 features. Two warpgroups multiply 64 rows each and keep the best score and
label so far.

On an H100 it is several times faster than XLA's program; docs/scaling.md has
the figures. Tried there without gain: clusters that share the copies, three
multiplying warpgroups, a warpgroup that starts later than the other.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from ecos_jax.clustering.kernels import parts as parts_lib

# Sizes of one step of a multiplying warpgroup.
_ROWS, _CENTROIDS, _FEATURES = 64, 128, 64
_TILE_ROWS = 2 * _ROWS
_LOADER = 2
# Shared memory for tiles; a program may have 227 KiB in all.
_SHARED_BYTES = 231_000
_MIN_SLOTS, _MAX_SLOTS = 3, 6
# Of an H100 SXM; used where JAX does not know the number.
_MULTIPROCESSORS = 132


def _multiply(rows, centroids):
  """Returns the float32 sum of the products of the parts."""

  def accumulate(accumulator):
    for i, j in parts_lib.pairs(len(rows), len(centroids)):
      plgpu.wgmma(accumulator, rows[i], centroids[j].transpose((1, 0)))
    return accumulator[...]

  shape = (_ROWS, _CENTROIDS)
  return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))


def _load_one_each(ref, rows):
  """Returns a float32 of device memory for each row."""
  if jax.__version_info__ < (0, 11):
    return plgpu.load(ref, rows, optimized=False)
  rows_ref = ref.at[rows]
  return plgpu.load(rows_ref, optimized=False)  # pyrefly: ignore[missing-argument]


class _Refs(NamedTuple):
  """The memory of one program, which its warpgroups share.

  Attributes:
    rows: float16 [parts, n, width], in device memory, as the next five.
    centroids: float16 [parts, k, width].
    half_norms: float32 [k].
    unscale: float32 [n]; what products are multiplied by.
    scores: float32 [n], the result.
    labels: int32 [n], the result.
    rows_tile: Slots for tiles of rows, in shared memory, as the next two.
    centroids_tile: Slots for tiles of centroids.
    half_norms_tile: Slots for their half norms.
    rows_loaded: Barriers, one for each slot for rows: the copy has come.
    rows_used: The slot may be filled again.
    loaded: Barriers, one for each slot for centroids: the copies have come.
    used: The slot may be filled again.
  """

  rows: Any
  centroids: Any
  half_norms: Any
  unscale: Any
  scores: Any
  labels: Any
  rows_tile: Any
  centroids_tile: Any
  half_norms_tile: Any
  rows_loaded: Any
  rows_used: Any
  loaded: Any
  used: Any


class _Order(NamedTuple):
  """The order in which a program takes its tiles.

  A pass takes a tile of rows past all centroids; a step of it takes a tile of
  centroids and of features.

  Attributes:
    program: Its number.
    programs: Number of programs.
    passes: Number of passes of this program.
    tiles: Number of tiles of centroids.
    depth: Number of tiles of features.
    resident: Whether a tile of rows stays in shared memory for all centroids.
  """

  program: Any
  programs: Any
  passes: Any
  tiles: int
  depth: int
  resident: bool

  def first_row(self, i):
    """Returns the first row of the i-th pass."""
    return (self.program + i * self.programs) * _TILE_ROWS

  def step(self, i, j, column):
    """Returns how many tiles of centroids come before this one."""
    return (i * self.tiles + j) * self.depth + column

  def row_step(self, i, j, column):
    """Returns how many tiles of rows come before this one."""
    if self.resident:
      return i * self.depth + column
    return self.step(i, j, column)


def _kernel(*refs, resident, scaled):
  """Computes scores and labels; runs on all warpgroups of all programs."""
  refs = _Refs(*refs)
  _, n, width = refs.rows.shape
  program, programs = lax.axis_index("program"), lax.axis_size("program")
  order = _Order(
    program,
    programs,
    passes=lax.div(n // _TILE_ROWS - program + programs - 1, programs),
    tiles=refs.centroids.shape[1] // _CENTROIDS,
    depth=width // _FEATURES,
    resident=resident,
  )
  warpgroup = lax.axis_index("warpgroup")

  @pl.when(warpgroup == _LOADER)
  def _():
    _load(refs, order)

  @pl.when(warpgroup != _LOADER)
  def _():
    _compute(refs, order, warpgroup, scaled)


def _load(refs: _Refs, order: _Order) -> None:
  """Copies tiles to shared memory: what the loading warpgroup does."""
  plgpu.set_max_registers(40, action="decrease")
  slots, row_slots = refs.used.shape[0], refs.rows_used.shape[0]

  def wait(barriers, i):
    """Waits until the i-th tile may go to its slot."""
    slots = barriers.shape[0]

    @pl.when(i >= slots)
    def _():
      plgpu.barrier_wait(barriers.at[lax.rem(i, slots)])

  def load_step(i, s):
    j, column = lax.div(s, order.depth), lax.rem(s, order.depth)
    columns = pl.ds(column * _FEATURES, _FEATURES)

    @pl.when((j == 0) | (not order.resident))
    def _():
      number = order.row_step(i, j, column)
      wait(refs.rows_used, number)
      slot = lax.rem(number, row_slots)
      rows = pl.ds(order.first_row(i), _TILE_ROWS)
      source = refs.rows.at[:, rows, columns]
      to, barrier = refs.rows_tile.at[slot], refs.rows_loaded.at[slot]
      plgpu.copy_gmem_to_smem(source, to, barrier)

    wait(refs.used, order.step(i, j, column))
    slot = lax.rem(order.step(i, j, column), slots)
    centroids = pl.ds(j * _CENTROIDS, _CENTROIDS)
    for source, tile in (
      (refs.centroids.at[:, centroids, columns], refs.centroids_tile),
      (refs.half_norms.at[centroids], refs.half_norms_tile),
    ):
      plgpu.copy_gmem_to_smem(source, tile.at[slot], refs.loaded.at[slot])

  def load_pass(i, _):
    steps = order.tiles * order.depth
    lax.fori_loop(0, steps, lambda s, _: load_step(i, s), None)

  lax.fori_loop(0, order.passes, load_pass, None)
  # Shared memory must not go before the last tiles are used.
  for barriers, total in (
    (refs.used, order.step(order.passes, 0, 0)),
    (refs.rows_used, order.row_step(order.passes, 0, 0)),
  ):

    def finish(i, _, barriers=barriers, total=total):
      wait(barriers, total + i)

    lax.fori_loop(0, barriers.shape[0], finish, None)


def _compute(refs: _Refs, order: _Order, warpgroup, scaled: bool) -> None:
  """Finds the best score and label of rows: a multiplying warpgroup."""
  plgpu.set_max_registers(232, action="increase")
  own = pl.ds(warpgroup * _ROWS, _ROWS)

  def compute_pass(i, _):
    rows = pl.ds(order.first_row(i) + warpgroup * _ROWS, _ROWS)
    unscale = _load_one_each(refs.unscale, rows) if scaled else None
    none = jnp.full(_ROWS, -jnp.inf, jnp.float32), jnp.zeros(_ROWS, jnp.int32)
    compare = functools.partial(_compare, refs, order, own, unscale, i)
    refs.scores[rows], refs.labels[rows] = lax.fori_loop(
      0, order.tiles, compare, none
    )

  lax.fori_loop(0, order.passes, compute_pass, None)


def _compare(refs: _Refs, order: _Order, own, unscale, i, j, best):
  """Returns the best scores and labels after the j-th tile of centroids."""
  slots = refs.used.shape[0]
  shape = (_ROWS, _CENTROIDS)
  products = lax.fori_loop(
    0,
    order.depth,
    functools.partial(_add_products, refs, order, own, i, j),
    jnp.zeros(shape, jnp.float32),
  )
  slot = lax.rem(order.step(i, j, order.depth - 1), slots)
  half_norms = refs.half_norms_tile[slot]
  # These are ordinary loads. The next copy to the slot goes past them, through
  # the async proxy, and a barrier alone does not order the two.
  plgpu.commit_smem()
  plgpu.barrier_arrive(refs.used.at[slot])
  if unscale is not None:
    products *= lax.broadcast_in_dim(unscale, shape, (0,))
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


def _add_products(refs: _Refs, order: _Order, own, i, j, column, sums):
  """Returns the sums of products after one more tile of features."""
  slot = lax.rem(order.step(i, j, column), refs.used.shape[0])
  row_slot = lax.rem(order.row_step(i, j, column), refs.rows_used.shape[0])

  @pl.when((j == 0) | (not order.resident))
  def _():
    plgpu.barrier_wait(refs.rows_loaded.at[row_slot])

  plgpu.barrier_wait(refs.loaded.at[slot])
  sums += _multiply(
    [
      refs.rows_tile.at[row_slot, part, own]
      for part in range(refs.rows.shape[0])
    ],
    [
      refs.centroids_tile.at[slot, part]
      for part in range(refs.centroids.shape[0])
    ],
  )

  @pl.when((j == order.tiles - 1) | (not order.resident))
  def _():
    plgpu.barrier_arrive(refs.rows_used.at[row_slot])

  # `_compare` still reads the half norms of the last one.
  @pl.when(column < order.depth - 1)
  def _():
    plgpu.barrier_arrive(refs.used.at[slot])

  return sums


def _pad(x, shape, value=0):
  return jnp.pad(
    x,
    [(0, m - n) for n, m in zip(x.shape, shape, strict=True)],
    constant_values=value,
  )


def _rings(depth: int, row_parts: int, centroid_parts: int):
  """Returns the numbers of slots for tiles, and whether those of rows stay.

  Args:
    depth: Number of tiles of features.
    row_parts: Parts of a row.
    centroid_parts: Parts of a centroid.

  Returns:
    Slots for rows, slots for centroids, and whether the tiles of a pass's rows
    fit in memory until its end.
  """
  row_bytes = row_parts * _TILE_ROWS * _FEATURES * 2
  step_bytes = centroid_parts * _CENTROIDS * _FEATURES * 2 + _CENTROIDS * 4
  both = _SHARED_BYTES // (row_bytes + step_bytes)
  if depth * row_bytes + 2 * step_bytes > _SHARED_BYTES:
    return both, both, False
  spare = _SHARED_BYTES - _MIN_SLOTS * step_bytes
  row_slots = min(max(spare // row_bytes, depth), 2 * depth)
  slots = (_SHARED_BYTES - row_slots * row_bytes) // step_bytes
  return row_slots, min(slots, _MAX_SLOTS), True


def nearest(
  features: jax.Array,
  centroids: jax.Array,
  *,
  fast: bool = False,
  interpret=None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the largest x.c - |c|^2 / 2 of each row, and its lowest index.

  Args:
    features: [n, d], float16, bfloat16 or float32.
    centroids: float32 [k, d].
    fast: Whether to make one product, of numbers rounded to float16.
    interpret: Parameters of Pallas's interpreter for Mosaic GPU; None compiles.

  Returns:
    float32 [n] scores and int32 [n] labels.
  """
  n, d = features.shape
  k = len(centroids)
  rows = pl.cdiv(n, _TILE_ROWS) * _TILE_ROWS
  width = pl.cdiv(d, _FEATURES) * _FEATURES
  height = pl.cdiv(k, _CENTROIDS) * _CENTROIDS
  scale = parts_lib.scale(jnp.max(jnp.abs(centroids)))
  half_norms = jnp.sum(centroids * centroids, axis=1) / 2 * scale
  half_norms = _pad(half_norms, (height,), jnp.inf)
  parts = parts_lib.split(centroids * scale, 1 if fast else 2)
  parts = _pad(parts, (len(parts), height, width))
  # Float16 rows go to the kernel as they lie in memory.
  scaled = features.dtype != jnp.float16
  unscale = jnp.ones(_TILE_ROWS)
  split = features[None]
  if scaled:
    exact = features.astype(jnp.float32)
    row_scale = parts_lib.scale(jnp.max(jnp.abs(exact), axis=1))
    unscale = _pad(1 / row_scale, (rows,), 1)
    single = fast or features.dtype == jnp.bfloat16
    split = parts_lib.split(exact * row_scale[:, None], 1 if single else 2)
  split = _pad(split, (len(split), rows, width))
  row_slots, slots, resident = _rings(
    width // _FEATURES, len(split), len(parts)
  )

  def tile(*shape):
    transforms = (
      plgpu.TilingTransform((8, _FEATURES)),
      plgpu.SwizzleTransform(2 * _FEATURES),
    )
    return plgpu.SMEM(shape, jnp.float16, transforms=transforms)

  device = jax.sharding.get_abstract_mesh().abstract_device
  cores = (device and device.num_cores) or _MULTIPROCESSORS
  scores, labels = plgpu.kernel(
    functools.partial(_kernel, resident=resident, scaled=scaled),
    out_type=(
      jax.ShapeDtypeStruct((rows,), jnp.float32),
      jax.ShapeDtypeStruct((rows,), jnp.int32),
    ),
    grid=(min(cores, rows // _TILE_ROWS),),
    grid_names=("program",),
    num_threads=3,
    thread_name="warpgroup",
    scratch_types=(
      tile(row_slots, len(split), _TILE_ROWS, _FEATURES),
      tile(slots, len(parts), _CENTROIDS, _FEATURES),
      plgpu.SMEM((slots, _CENTROIDS), jnp.float32),
      plgpu.Barrier(num_arrivals=1, num_barriers=row_slots),
      plgpu.Barrier(num_arrivals=2, num_barriers=row_slots),
      plgpu.Barrier(num_arrivals=2, num_barriers=slots),
      plgpu.Barrier(num_arrivals=2, num_barriers=slots),
    ),
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
      reduction_scratch_bytes=0,
    ),
    interpret=interpret,
  )(split, parts, half_norms, unscale)
  return scores[:n] / scale, labels[:n]

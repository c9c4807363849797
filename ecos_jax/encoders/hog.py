"""Histograms of oriented gradients: the encoders of the Digits benchmark.

ECOS describes a digit by where its strokes run, in 72 numbers (Dalal and
Triggs, CVPR 2005: 8 orientations, cells of 8x8 pixels, one block of 3x3 cells,
L2 norm). The results equal those of `skimage.feature.hog` with these settings
to about 1e-7, batched and compiled.

Cloud and client may run on different chips and must agree on the nearest
centroid. So every decision is exact: gradients of uint8 images are small
integers in float32; the channel is the one with the largest squared gradient,
an integer; and the orientation bin depends on which side of a line the gradient
lies, not on an arc tangent. The rest is float32 sums and one square root.

    >>> import numpy as np
    >>> hog(np.zeros((5, 28, 28, 3), np.uint8)).shape
    (5, 72)

Strokes alone do not distinguish a white digit on black from a coloured one on a
photograph. `hog_grey` appends the grey image at 7x7 pixels: 49 numbers that
distinguish the domains of a pool. docs/sampling.md shows the gain.

    >>> hog_grey(np.zeros((5, 28, 28, 3), np.uint8)).shape
    (5, 121)
"""

import math

import jax
import jax.numpy as jnp

IMAGE_SIZE = 28
ORIENTATIONS = 8
CELL = 8
BLOCK = 3
DIMENSION = BLOCK * BLOCK * ORIENTATIONS
GREY = 7  # pixels, of 4x4 each
GREY_DIMENSION = DIMENSION + GREY * GREY
# With it, both parts have the same total variance over the Digits pool.
GREY_WEIGHT = 0.4

# Directions between the bins: 22.5, 45, ... 157.5 degrees. At multiples of 45
# the test is on integers; at the others an integer gradient is at least 1e-3
# away from the line, far more than the rounding of float32.
_T = math.sqrt(2) - 1
_BOUNDARIES = ((1, _T), (1, 1), (_T, 1), (0, 1), (-_T, 1), (-1, 1), (-1, _T))
_EPSILON = 1e-5


@jax.jit
def hog(images: jax.Array) -> jax.Array:
  """Returns the HOG features of images, [b, 72] float32.

  The order is cell row, cell column, orientation. If channels tie in the
  magnitude of the gradient, the first one is used.

  Args:
    images: [b, 28, 28, 3] uint8. The last four rows and columns fill no cell
      and are not used, as in scikit-image.

  Raises:
    ValueError: The images have another shape or type.
  """
  b = len(images)
  shape = (b, IMAGE_SIZE, IMAGE_SIZE, 3)
  if images.shape != shape or images.dtype != jnp.uint8:
    raise ValueError(
      f"images must be uint8 {shape}, got {images.dtype} {images.shape}"
    )
  used = BLOCK * CELL
  squared = jnp.full((b, used, used), -1.0, jnp.float32)
  down = right = jnp.zeros((b, used, used), jnp.float32)
  for channel in range(3):
    x = images[..., channel].astype(jnp.float32)
    # Central differences; none across the edge of the image.
    rows = x[:, 2 : used + 1, :used] - x[:, : used - 1, :used]
    columns = x[:, :used, 2 : used + 1] - x[:, :used, : used - 1]
    rows = jnp.pad(rows, ((0, 0), (1, 0), (0, 0)))
    columns = jnp.pad(columns, ((0, 0), (0, 0), (1, 0)))
    candidate = rows * rows + columns * columns
    larger = candidate > squared
    squared = jnp.maximum(candidate, squared)
    down = jnp.where(larger, rows, down)
    right = jnp.where(larger, columns, right)
  # Opposite gradients are one orientation: turn all into [0, 180) degrees.
  right = jnp.where(
    down == 0, jnp.abs(right), jnp.where(down < 0, -right, right)
  )
  down = jnp.abs(down)
  orientation = jnp.zeros((b, used, used), jnp.int32)
  for x, y in _BOUNDARIES:
    orientation += x * down - y * right >= 0
  cells = (b, BLOCK, CELL, BLOCK, CELL)
  orientation = orientation.reshape(cells)
  magnitude = jnp.sqrt(squared).reshape(cells)
  histogram = [
    jnp.where(orientation == o, magnitude, 0).sum((2, 4))
    for o in range(ORIENTATIONS)
  ]
  block = jnp.stack(histogram, -1).reshape(b, DIMENSION) / (CELL * CELL)
  return block / jnp.sqrt((block**2).sum(1, keepdims=True) + _EPSILON**2)


@jax.jit
def hog_grey(images: jax.Array) -> jax.Array:
  """Returns HOG and the grey image at 7x7 pixels, [b, 121] float32.

  The last 49 numbers are means over 4x4 pixels and the three channels, in
  [0, `GREY_WEIGHT`], row by row. Their sums are integers and so exact.

  Args:
    images: [b, 28, 28, 3] uint8.

  Raises:
    ValueError: The images have another shape or type.
  """
  gradients = hog(images)
  side = IMAGE_SIZE // GREY
  pixels = images.reshape(-1, GREY, side, GREY, side * 3)
  sums = pixels.astype(jnp.float32).sum((2, 4)).reshape(-1, GREY * GREY)
  grey = sums * (GREY_WEIGHT / (255 * side * side * 3))
  return jnp.concatenate([gradients, grey], axis=1)

"""The two domains of Digits that are made: MNIST-M and SynthDigits.

Neither can be shipped, so both are made by their published recipes (Ganin et
al., "Domain-adversarial training of neural networks", JMLR 2016). These are not
the published images: a figure measured on them says nothing about those.

MNIST-M: an MNIST digit is blended over a random patch of a colour photograph,
|patch - digit|. The paper took photographs from BSDS500; here they come with
the packages scikit-image and scikit-learn: astronaut (NASA,
public domain); chelsea, coffee, rocket (CC0); motorcycle (Middlebury stereo
2014, CC0); china, flower (CC BY 2.0, see `sklearn/datasets/images/README.txt`).

SynthDigits: numbers of one to three digits in many fonts, with the colours of
digit and background, the position, the orientation and the blur varied; the
label is the digit in the centre. The paper used the fonts of Windows; here they
come with matplotlib (DejaVu, STIX, Computer Modern).
"""

import functools
from pathlib import Path

import matplotlib
from matplotlib import ft2font
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont
from scipy import ndimage
import skimage.data
from sklearn import datasets

SIZE = 28

_DIGITS = "0123456789"
_GLYPH_NAMES = (
  *("zero", "one", "two", "three", "four"),
  *("five", "six", "seven", "eight", "nine"),
)
_CELL = 48  # pixels of a glyph's square, wide enough for a margin of nothing
_GLYPH_HEIGHT = 28  # pixels of a digit in it
_BLURS = (0.0, 0.5, 0.8, 1.1)


@functools.cache
def _photos() -> list[np.ndarray]:
  return [
    skimage.data.astronaut(),
    skimage.data.chelsea(),
    skimage.data.coffee(),
    skimage.data.rocket(),
    skimage.data.stereo_motorcycle()[0],
    *datasets.load_sample_images().images,
  ]


def mnist_m(digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns MNIST-M images, [n, 28, 28, 3] uint8.

  Args:
    digits: [n, 28, 28] uint8, bright on black.
    rng: Chooses the patches.
  """
  n = len(digits)
  photo_of = rng.integers(len(_photos()), size=n)
  patches = np.empty((n, SIZE, SIZE, 3), np.int16)
  for index, photo in enumerate(_photos()):
    rows = np.flatnonzero(photo_of == index)
    windows = np.lib.stride_tricks.sliding_window_view(
      photo, (SIZE, SIZE), axis=(0, 1)
    )
    top = rng.integers(windows.shape[0], size=len(rows))
    left = rng.integers(windows.shape[1], size=len(rows))
    patches[rows] = np.moveaxis(windows[top, left], 1, -1)
  return np.abs(patches - digits[..., None]).astype(np.uint8)


@functools.cache
def _glyphs() -> tuple[np.ndarray, np.ndarray]:
  """Returns the digits of all fonts.

  Returns:
    Rasters [fonts * 10 * _CELL, _CELL] float32 in [0, 1]: a column of square
    cells with a digit in the centre of each. Half widths of the digits
    [fonts * 10].
  """
  cells, half_widths = [], []
  folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
  for path in sorted(folder.glob("*.ttf")):
    # Symbol fonts have other glyphs in place of digits, or dummies.
    face = ft2font.FT2Font(str(path))
    characters = (face.get_char_index(ord(digit)) for digit in _DIGITS)
    if tuple(map(face.get_glyph_name, characters)) != _GLYPH_NAMES:
      continue
    probe = ImageFont.truetype(path, 100)
    _, top, _, bottom = probe.getbbox("8")
    font = probe.font_variant(size=round(100 * _GLYPH_HEIGHT / (bottom - top)))
    baseline = (_CELL + _GLYPH_HEIGHT) / 2
    for digit in _DIGITS:
      cell = Image.new("L", (_CELL, _CELL))
      draw = ImageDraw.Draw(cell)
      draw.text((_CELL / 2, baseline), digit, 255, font, anchor="ms")
      cells.append(np.asarray(cell, np.float32) / 255)
      half_widths.append(font.getlength(digit) / 2)
  return np.concatenate(cells), np.array(half_widths)


def _strokes(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns the share of ink in each pixel, [n, 28, 28] float32 in [0, 1]."""
  n = len(labels)
  rasters, half_widths = _glyphs()
  font = rng.integers(len(half_widths) // 10, size=n)
  height = rng.uniform(13, 23, n)
  angle = np.deg2rad(rng.uniform(-20, 20, n))
  shift_x, shift_y = rng.uniform(-2.5, 2.5, (2, n))
  # In pixels of the rasters, from the centre of the digit that is the label.
  y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
  x = x - shift_x[:, None, None]
  y = y - shift_y[:, None, None]
  scale = (_GLYPH_HEIGHT / height)[:, None, None]
  cos = np.cos(angle)[:, None, None] * scale
  sin = np.sin(angle)[:, None, None] * scale
  u, v = cos * x + sin * y, cos * y - sin * x

  def draw(rows: np.ndarray, glyph: np.ndarray, left: np.ndarray) -> np.ndarray:
    # Coordinates outside of a cell are clipped to its margins, which are blank.
    v_cell = np.clip(v[rows] + (_CELL - 1) / 2, 0, _CELL - 1)
    u_cell = u[rows] + (_CELL - 1) / 2 - left[:, None, None]
    v_column = v_cell + (glyph * _CELL)[:, None, None]
    return ndimage.map_coordinates(rasters, [v_column, u_cell], order=1)

  centre = font * 10 + labels
  ink = draw(np.arange(n), centre, np.zeros(n))
  for side in (-1, 1):
    rows = np.flatnonzero(rng.random(n) < 0.5)
    glyph = font[rows] * 10 + rng.integers(10, size=len(rows))
    left = side * (half_widths[centre[rows]] + half_widths[glyph])
    ink[rows] = np.maximum(ink[rows], draw(rows, glyph, left))
  return ink


def synthdigits(
  n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Returns SynthDigits images [n, 28, 28, 3] uint8 and labels [n] int64.

  Args:
    n: Number of images.
    rng: Draws everything that varies.
  """
  labels = rng.integers(10, size=n)
  ink = _strokes(labels, rng)[..., None]
  # The one of three colours that differs most, so that most digits are legible.
  background = rng.uniform(0, 255, (n, 1, 1, 3)).astype(np.float32)
  colours = rng.uniform(0, 255, (3, n, 1, 1, 3)).astype(np.float32)
  best = np.argmax(((colours - background) ** 2).sum(-1)[..., 0, 0], 0)
  colour = colours[best, np.arange(n)]
  # The background fades into another colour, in any direction.
  direction = rng.uniform(0, 2 * np.pi, n)[:, None, None]
  y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
  ramp = np.cos(direction) * x + np.sin(direction) * y
  slope = rng.normal(0, 40, (n, 1, 1, 3)).astype(np.float32)
  background = background + slope * ramp[..., None].astype(np.float32)
  images = background + ink * (colour - background)
  blur_of = rng.integers(len(_BLURS), size=n)
  for index, blur in enumerate(_BLURS):
    rows = blur_of == index
    images[rows] = ndimage.gaussian_filter(images[rows], (0, blur, blur, 0))
  noise = rng.standard_normal(images.shape, np.float32)
  images += rng.uniform(0, 6, (n, 1, 1, 1)).astype(np.float32) * noise
  return np.clip(images, 0, 255).astype(np.uint8), labels

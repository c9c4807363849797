"""Reads and writes image files; damaged files give errors."""

from collections.abc import Callable, Iterable
import concurrent.futures
import contextlib
import io
import re

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps
from PIL import UnidentifiedImageError

from ecos_jax import errors
from ecos_jax import files

try:
  import pillow_heif  # pyrefly: ignore[missing-import]
except ImportError:
  _HEIF = ()
else:
  pillow_heif.register_heif_opener()
  _HEIF = ("HEIF",)

# Pillow knows forty formats, and hands one of them, PostScript, to Ghostscript.
FORMATS = (
  *("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"),  # JPEG includes MPO
  *_HEIF,
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# How the names of image files end, in lower case.
SUFFIXES = (
  *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
  *(".png", ".tif", ".tiff", ".webp"),
  *(HEIF_SUFFIXES if _HEIF else ()),
)
_HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
# A checkout may have a pointer of git-lfs, which begins so, for a large file.
LFS = b"version https://git-lfs"
LFS_WHY = "it is a pointer of git-lfs: git lfs pull brings the file itself"
# What shows where an image is transparent.
WHITE, BLACK = "white", "black"
# 358 MB decoded, as RGBA; Pillow warns of more, up to twice as many.
MAX_PIXELS = 89_478_485
_COMMON = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)


def opened(data: bytes) -> Image.Image:
  """Returns the image in a file's bytes; its pixels are not decoded yet.

  Raises:
    OSError, SyntaxError, ValueError: It is no image, or has too many pixels.
  """
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise ValueError(f"more than {MAX_PIXELS:,} pixels") from None
  if image.width * image.height > MAX_PIXELS:
    raise ValueError(f"more than {MAX_PIXELS:,} pixels")
  return image


def decode(data: bytes, where: str, size: int | None = None) -> Image.Image:
  """Returns the image in a file's bytes, turned as its EXIF data say.

  Args:
    data: The content of the file.
    where: The name of the file, for errors.
    size: A JPEG may be decoded at a smaller size, but each side keeps at least
      2 * size pixels: this takes half the time. None: the full size.

  Raises:
    EcosError: It is no image, or a damaged one.
  """
  try:
    image = opened(data)
    if size is not None:
      image.draft(image.mode, (2 * size, 2 * size))
    image.load()
    image = _upright(image)
  except Exception as e:  # Pillow's plugins raise errors of any class.
    raise errors.EcosError(
      f"{where} cannot be read as an image ({_why(e, data)}): replace or "
      "remove it"
    ) from e
  return image


def _upright(image: Image.Image) -> Image.Image:
  """Returns the image turned as its EXIF data say."""
  # Damaged EXIF data of a good image make Pillow raise errors of any class.
  with contextlib.suppress(Exception):
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
      return ImageOps.exif_transpose(image)
  return image


def _why(error: Exception, data: bytes) -> str:
  # Pillow's own message names an object in memory.
  if isinstance(error, UnidentifiedImageError):
    if data.startswith(LFS):
      return LFS_WHY
    if _HEIC.match(data):
      return "HEIC needs: pip install 'ecos_jax[heic]'"
    return f"not one of the formats {', '.join(FORMATS)}"
  return str(error)


def why_unreadable(data: bytes) -> str | None:
  """Returns why a file cannot be decoded; None if it can.

  Compares the checksums of formats that have some, and decodes the image too: a
  file with right checksums may still be no image.
  """
  try:
    opened(data).verify()
    decode(data, "it", size=1)
  except errors.EcosError as error:
    assert isinstance(error.__cause__, Exception)
    return _why(error.__cause__, data)
  except Exception as error:  # Pillow's plugins raise errors of any class.
    return _why(error, data)
  return None


def digest(data: bytes) -> str:
  """Returns the first 128 bits of the sha256 of a file's bytes, as hex."""
  return files.digest(data)[:32]


def fingerprints(digests: Iterable[str]) -> np.ndarray:
  """Returns digests as numbers that numpy can compare, [n] V16."""
  return np.frombuffer(bytes.fromhex("".join(digests)), "V16")


def from_array(array: np.ndarray) -> Image.Image:
  """Returns the image in an array [h, w], [h, w, 1] or [h, w, 3] uint8."""
  if array.shape[2:] == (1,):
    array = array[..., 0]
  return Image.fromarray(array)


def png(image: Image.Image) -> bytes:
  """Returns the image as a PNG file."""
  file = io.BytesIO()
  image.save(file, format="PNG")
  return file.getvalue()


def common(data: bytes, where: str, ground: str = WHITE) -> bytes:
  """Returns the file if it is PNG, JPEG or WebP; a PNG file otherwise.

  A transparent image becomes a PNG file in RGB too.

  Args:
    data: The content of the file.
    where: The name of the file, for errors.
    ground: As in `rgb`.

  Raises:
    EcosError: It is no image.
  """
  if _COMMON.match(data) and not opened(data).has_transparency_data:
    return data
  return png(rgb(decode(data, where), ground))


def rgb(image: Image.Image, ground: str = WHITE) -> Image.Image:
  """Returns the image in RGB, from any mode.

  Args:
    image: The image.
    ground: The colour on which a transparent image is laid.
  """
  if image.mode[0] in "IF":  # Pillow would clip, not scale
    image = _eight_bits(image)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, ground)
    image = Image.alpha_composite(canvas, image)
  return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
  """Returns a grey image of 16 or 32 bits, or of floats, with 8 bits.

  Integers are taken to have 8, 12 or 16 bits, the fewest that hold the largest
  of the image: many 16-bit files are of cameras with 12. Floats in [0, 1] are
  multiplied by 255. Whatever has larger or negative values is scaled so that
  its range becomes 0 to 255.
  """
  grey = np.nan_to_num(np.asarray(image))
  low, high = grey.min(initial=0), grey.max(initial=0)
  whole = grey.dtype.kind != "f"
  if whole and low == 0 and high < 2**16:
    shift = 0 if high < 2**8 else 4 if high < 2**12 else 8
    grey = grey >> shift
  elif low < 0 or high > 255:
    scale = 255 / (float(high) - float(low))
    grey = (grey.astype(np.float64) - low) * scale
  elif high <= 1:
    grey = grey * 255
  return Image.fromarray(np.rint(grey).astype(np.uint8))


def square(image: Image.Image, size: int, ground: str = WHITE) -> np.ndarray:
  """Returns the central square of the image in RGB, [size, size, 3] uint8.

  The square is resized with a bicubic filter if it has another size.

  Args:
    image: The image.
    size: Height and width of the result.
    ground: As in `rgb`.
  """
  image = rgb(image, ground)
  if image.size != (size, size):
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
  return np.asarray(image)


def squares(
  read: Callable[[int], Image.Image],
  indices: np.ndarray,
  size: int,
  ground: str = WHITE,
) -> np.ndarray:
  """Returns the image that `read` returns for each index, cut to a square.

  Args:
    read: Called from several threads, since Pillow decodes and resizes without
      the interpreter's lock.
    indices: [n] integers.
    size: Height and width of the result.
    ground: As in `rgb`.

  Returns:
    [n, size, size, 3] uint8.
  """
  out = np.empty((len(indices), size, size, 3), np.uint8)

  def put(rows: np.ndarray) -> None:
    for row in rows:
      out[row] = square(read(int(indices[row])), size, ground)

  with concurrent.futures.ThreadPoolExecutor() as threads:
    list(threads.map(put, np.array_split(np.arange(len(indices)), 32)))
  return out

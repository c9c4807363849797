import io
from pathlib import Path
import subprocess

import numpy as np
from PIL import ExifTags
from PIL import Image
import pytest

from ecos_jax import errors
from ecos_jax.data import images


def photo(height=20, width=30):
  y, x = np.mgrid[:height, :width]
  pixels = np.stack([8 * y % 256, 5 * x % 256, 3 * (x + y) % 256], -1)
  return pixels.astype(np.uint8)


def file(image, kind, **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_square_is_rgb_whatever_the_mode(mode):
  image = Image.fromarray(photo()).convert(mode)
  expected = np.asarray(image.convert("RGB").crop((5, 0, 25, 20)))
  np.testing.assert_array_equal(images.square(image, 20), expected)


def test_16_bits_are_scaled_not_clipped():
  grey = (photo()[..., 0].astype(np.uint16) << 8) + 99
  image = images.decode(file(Image.fromarray(grey), "PNG"), "x")
  expected = np.repeat(photo()[:, 5:25, :1], 3, -1)
  np.testing.assert_array_equal(images.square(image, 20), expected)


def test_a_palette_with_transparency_is_read_without_a_warning():
  image = Image.fromarray(photo()).convert("P")
  data = file(image, "PNG", transparency=bytes(range(256)))
  square = images.square(images.decode(data, "x"), 20)
  colours = np.asarray(image.convert("RGB"))[:, 5:25].astype(float)
  # Entry i of the palette has alpha i / 255.
  alpha = np.asarray(image)[:, 5:25, None] / 255
  expected = colours * alpha + 255 * (1 - alpha)
  np.testing.assert_allclose(square, expected, atol=1)


@pytest.mark.parametrize(
  ("mode", "kind"),
  [
    *(("RGBA", kind) for kind in ("PNG", "WEBP", "TIFF", "AVIF")),
    *(("LA", kind) for kind in ("PNG", "TIFF")),
  ],
)
def test_black_on_transparency_is_black_on_the_ground(mode, kind):
  """As icons and glyphs are drawn: without a ground, nothing is left."""
  drawing = np.zeros((20, 20, len(mode)), np.uint8)
  drawing[5:15, 8:12, -1] = 255
  lossless = {"lossless": True} if kind == "WEBP" else {}
  lossless |= {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {}
  data = file(Image.fromarray(drawing), kind, **lossless)
  expected = np.where(drawing[..., -1:], 0, np.full((20, 20, 3), 255))
  image = images.decode(data, "x")
  np.testing.assert_array_equal(images.square(image, 20), expected)
  assert not images.square(image, 20, images.BLACK).any()
  # The proxy has the same.
  kept = images.opened(images.common(data, "x"))
  assert kept.mode == "RGB" and not kept.has_transparency_data
  np.testing.assert_array_equal(np.asarray(kept), expected)


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "MPO", "TIFF"])
def test_of_several_frames_the_first_is_read(kind):
  first, second = (Image.new("RGB", (24, 16), c) for c in ("red", "blue"))
  several = {} if kind == "BMP" else {"save_all": True}
  several |= {"append_images": [second]} if several else {}
  data = file(first, kind, **several)
  assert images.why_unreadable(data) is None
  for got in (data, images.common(data, "x")):
    colour = images.square(images.decode(got, "x"), 8).mean((0, 1))
    np.testing.assert_allclose(colour, (255, 0, 0), atol=4)


@pytest.mark.parametrize(
  ("top", "dtype", "kind"),
  [
    (255, "<u2", "PNG"),
    (4095, "<u2", "PNG"),
    (65535, "<u2", "PNG"),
    (4095, ">u2", "TIFF"),
    (2**20, "<i4", "TIFF"),
    (1.0, "<f4", "TIFF"),
    (255.0, "<f4", "TIFF"),
    (1e6, "<f4", "TIFF"),
  ],
)
def test_deep_greys_keep_their_range(top, dtype, kind):
  """12 bits in a 16-bit file would be almost black, floats would be black."""
  ramp = np.linspace(0, top, 400).reshape(20, 20)
  image = Image.fromarray(ramp.astype(dtype))
  assert image.mode[0] in "IF"
  got = images.square(images.decode(file(image, kind), "x"), 20)
  expected = np.repeat(np.linspace(0, 255, 400).reshape(20, 20, 1), 3, -1)
  np.testing.assert_allclose(got, expected, atol=1.01)


def test_negative_greys_are_no_white():
  ramp = np.linspace(-1000, 3000, 400).reshape(20, 20)
  expected = np.linspace(0, 255, 400).reshape(20, 20)
  for dtype in (np.int32, np.float32):
    got = images.square(Image.fromarray(ramp.astype(dtype)), 20)
    np.testing.assert_allclose(got[..., 0], expected, atol=1.01)
  holes = np.array([[np.nan, 0.5], [1, np.inf]], np.float32)
  assert images.square(Image.fromarray(holes), 2)[0, 0, 0] == 0


def test_a_pointer_of_git_lfs_and_a_heic_file_say_what_they_need():
  pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
  assert "git lfs pull" in str(images.why_unreadable(pointer))
  if "HEIF" not in images.FORMATS:
    heic = b"\0\0\0\x18ftypheic" + bytes(99)
    assert "ecos_jax[heic]" in str(images.why_unreadable(heic))


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 90), (77, 40)])
def test_square_keeps_the_centre_and_the_aspect(height, width):
  # A disc in the centre remains a disc.
  y, x = np.mgrid[:height, :width]
  radius = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
  disc = np.repeat((255 * (radius < 14)).astype(np.uint8)[..., None], 3, -1)
  square = images.square(Image.fromarray(disc), 20)
  np.testing.assert_array_equal(square, square[::-1])
  np.testing.assert_array_equal(square, square[:, ::-1])
  y, x = np.mgrid[:20, :20] - 9.5
  np.testing.assert_allclose(square[np.hypot(y, x) < 5.5], 255, atol=3)
  np.testing.assert_allclose(square[np.hypot(y, x) > 8.5], 0, atol=3)


def test_an_image_of_the_right_size_is_unchanged():
  pixels = photo(28, 28)
  square = images.square(Image.fromarray(pixels), 28)
  np.testing.assert_array_equal(square, pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_decode_refuses_damaged_files_and_names_them(kind):
  data = file(Image.fromarray(photo()), kind)
  for damaged in (data[: len(data) // 2], b"", b"no image", data[:20]):
    with pytest.raises(errors.EcosError, match=r"a/b\.x cannot be read") as e:
      images.decode(damaged, "a/b.x")
    assert "0x" not in str(e.value)


def test_a_damaged_avif_is_refused_and_named():
  data = bytearray(file(Image.fromarray(photo()), "AVIF"))
  at = data.index(b"mdat")
  data[at + 4 :] = bytes(len(data) - at - 4)
  with pytest.raises(errors.EcosError, match=r"a/b\.x cannot be read"):
    images.decode(bytes(data), "a/b.x")


@pytest.mark.parametrize("size", [None, 2])
def test_an_image_is_turned_as_its_exif_data_say(size):
  # As a camera on its side stores it: the top row is the left column.
  stored = np.zeros((40, 60, 3), np.uint8)
  stored[:, :30] = 255
  image = Image.fromarray(stored)
  for orientation, bright in ((1, "left"), (3, "right"), (6, "top")):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = file(image, "JPEG", exif=exif)
    got = np.asarray(images.decode(data, "x", size)).astype(float).mean(-1)
    assert (got.shape[0] > got.shape[1]) == (bright == "top")
    height, width = got.shape
    halves = {
      "left": got[:, : width // 2],
      "right": got[:, -(width // 2) :],
      "top": got[: height // 2],
    }
    assert halves[bright].mean() > 0.9 * 255
    assert got.mean() == pytest.approx(128, abs=16)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_are_no_damage_to_the_image():
  image = Image.fromarray(photo())
  data = file(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1")
  plain = images.decode(file(image, "JPEG"), "x")
  np.testing.assert_array_equal(images.decode(data, "x"), plain)


@pytest.mark.parametrize("limit", [100, 1000, 10**9])
def test_an_image_with_too_many_pixels_is_refused(monkeypatch, limit):
  """Pillow itself raises, only warns, or says nothing."""
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
  monkeypatch.setattr(images, "MAX_PIXELS", 1000)
  data = file(Image.fromarray(photo(30, 40)), "PNG")
  with pytest.raises(errors.EcosError, match=r"more than 1,000 pixels"):
    images.decode(data, "x")
  assert "pixels" in images.why_unreadable(data)


@pytest.mark.parametrize(
  "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", None]
)
def test_other_formats_are_refused_and_start_no_program(data, monkeypatch):
  monkeypatch.setattr(
    subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started")
  )
  data = data or file(Image.fromarray(photo()), "ICO")
  with pytest.raises(errors.EcosError, match=r"not one of the formats .*JPEG"):
    images.decode(data, "x")
  assert "formats" in images.why_unreadable(data)


def test_every_image_is_opened_in_one_place():
  calls = [
    f"{path}:{number}"
    for path in Path("ecos_jax").rglob("*.py")
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if "Image.open(" in line
  ]
  assert len(calls) == 1
  assert "formats=" in Path("ecos_jax/data/images.py").read_text()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_common_files_are_handed_on_as_they_are(kind):
  data = file(Image.fromarray(photo()), kind)
  assert images.common(data, "x") is data


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_other_files_become_png(mode):
  image = Image.fromarray(photo()).convert(mode)
  data = images.common(file(image, "TIFF"), "x")
  assert data.startswith(b"\x89PNG")
  np.testing.assert_array_equal(images.decode(data, "x"), photo())


@pytest.mark.parametrize("shape", [(1, 1), (1, 5, 1), (1, 5, 3), (5, 1, 3)])
def test_arrays_survive_png(shape):
  array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
  decoded = images.decode(images.png(images.from_array(array)), "x")
  np.testing.assert_array_equal(np.asarray(decoded).reshape(shape), array)


def test_squares_are_in_the_order_of_the_indices():
  def read(index):
    return Image.new("RGB", (9, 9), (index, 0, 0))

  indices = np.random.default_rng(0).permutation(100)
  squares = images.squares(read, indices, 4)
  assert squares.shape == (100, 4, 4, 3)
  np.testing.assert_array_equal(squares[:, 0, 0, 0], indices)
  assert images.squares(read, indices[:0], 4).shape == (0, 4, 4, 3)


def test_squares_hands_on_an_error():
  def read(index):
    raise errors.EcosError(f"image {index}")

  with pytest.raises(errors.EcosError, match="image 7"):
    images.squares(read, np.array([7]), 4)

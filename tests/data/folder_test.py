import os
import shutil
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from ecos_jax import errors
from ecos_jax.data import folder
from ecos_jax.data import images
from tests.data import made_images


def test_reads_all_kinds_in_sorted_order(tmp_path):
  pixels = made_images.random(4, 8, 8, 3)
  made_images.save(tmp_path / "b/2.PNG", pixels[2])
  made_images.save(tmp_path / "b/10.png", pixels[1])
  made_images.save(tmp_path / "a.webp", pixels[0], lossless=True)
  made_images.save(tmp_path / "c/d/e.jpeg", pixels[3])
  (tmp_path / "notes.txt").write_text("no image")
  (tmp_path / ".hidden.png").write_bytes(b"no image")
  made_images.save(tmp_path / ".hidden" / "f.png", pixels[0])
  source = folder.FolderSource(tmp_path)
  assert source.others == {".txt": 1, "hidden .png": 1}
  assert source.name == tmp_path.name
  assert len(source) == 4
  images = source.images(np.arange(4), 8)
  np.testing.assert_array_equal(images[:3], pixels[:3])
  jpeg = np.asarray(Image.open(tmp_path / "c/d/e.jpeg"))
  np.testing.assert_array_equal(images[3], jpeg)
  assert source.labels(np.arange(4)).tolist() == [-1] * 4


@pytest.mark.parametrize(
  "classes, expected",
  [
    (None, [-1, -1, -1, -1, -1, -1, -1, -1]),
    (("numbers",), [7, -1, 2, 99999, -1, -1, -1, -1]),
    (("dog", "cow", "cat", "2"), [-1, -1, 3, -1, 2, 2, 0, -1]),
  ],
)
def test_a_label_is_the_folder_s_own(tmp_path, classes, expected):
  """The number that is its name, or its place in a list from elsewhere."""
  names = ["07/x", "2/deep/z", "2/y", "99999/x"]
  names += ["cat/0", "cat/1", "dog/2", "top"]
  for name in names:
    made_images.save(tmp_path / f"{name}.png", made_images.random(4, 4, 3))
  source = folder.FolderSource(tmp_path, classes)
  labels = source.labels(np.arange(8))
  assert labels.dtype == np.int64
  assert labels.tolist() == expected
  # No file that goes changes the label of another.
  for row, name in enumerate(names):
    file = tmp_path / f"{name}.png"
    data = file.read_bytes()
    file.unlink()
    rest = folder.FolderSource(tmp_path, classes).labels(np.arange(7))
    assert rest.tolist() == expected[:row] + expected[row + 1 :]
    file.write_bytes(data)


def test_a_number_is_the_nearest_folder_s_as_a_name_is(tmp_path):
  made_images.save(tmp_path / "train/7/x.png", made_images.random(4, 4, 3))
  for classes in (("numbers",), tuple("01234567")):
    source = folder.FolderSource(tmp_path, classes)
    assert source.labels(np.arange(1)).tolist() == [7]


@pytest.mark.parametrize("name", ["20240501", "100000", "3000000000"])
def test_a_date_is_no_number_of_a_class(tmp_path, name):
  made_images.save(tmp_path / name / "x.png", made_images.random(4, 4, 3))
  assert folder.FolderSource(tmp_path).classes == 0
  with pytest.raises(
    errors.EcosError, match=r"over 99999\. .* each class"
  ) as error:
    folder.FolderSource(tmp_path, ("numbers",))
  assert name not in str(error.value).replace(str(tmp_path), "")


def test_a_class_is_found_in_any_form_of_unicode(tmp_path):
  """macOS writes é as e and an accent, keyboards write one character."""
  made_images.save(tmp_path / "cafe\u0301/x.png", made_images.random(4, 4, 3))
  for names in (["caf\u00e9"], ["cafe\u0301"]):
    source = folder.FolderSource(tmp_path, [*names, "b"])
    assert source.labels(np.arange(1)).tolist() == [0]
  assert source.class_names == {"caf\u00e9"}


def test_other_classes_of_the_same_files(tmp_path):
  for name in ("cat", "dog", "1"):
    made_images.save(tmp_path / name / "x.png", made_images.random(4, 4, 3))
  source = folder.FolderSource(tmp_path)
  digest = source.digest
  for classes in (("dog", "cat"), ("numbers",)):
    other = source.of_classes(classes)
    opened = folder.FolderSource(tmp_path, classes)
    assert other.digest == opened.digest != digest == source.digest
    rows = np.arange(3)
    assert other.labels(rows).tolist() == opened.labels(rows).tolist()
  assert source.classes == 0


def test_the_classes_are_part_of_the_content(tmp_path):
  made_images.save(tmp_path / "a/x.png", made_images.random(4, 4, 3))
  lists = (None, ["a", "b"], ["b", "a"])
  digests = {folder.FolderSource(tmp_path, names).digest for names in lists}
  assert len(digests) == 3
  with pytest.raises(errors.EcosError, match=r"`classes` .* twice"):
    folder.FolderSource(tmp_path, ["a", "b", "a"])


def test_encoded_is_the_file_byte_for_byte(tmp_path):
  made_images.save(tmp_path / "a.jpg", made_images.random(9, 5, 3), quality=50)
  made_images.save(tmp_path / "b.png", made_images.random(9, 5))
  made_images.save(
    tmp_path / "c.webp", made_images.random(9, 5, 3), lossless=True
  )
  source = folder.FolderSource(tmp_path)
  assert source.encoded(0) == (tmp_path / "a.jpg").read_bytes()
  assert source.encoded(1) == (tmp_path / "b.png").read_bytes()
  assert source.encoded(2) == (tmp_path / "c.webp").read_bytes()


def _broken(data):
  cut = data[: len(data) // 2]
  flipped = bytearray(data)
  flipped[len(data) // 2] ^= 255
  return {"empty": b"", "cut": cut, "text": b"no image", "flipped": flipped}


def _garbage_in_order(data):
  """A PNG whose checksums are right and whose pixels are none."""
  begin = data.index(b"IDAT")
  (length,) = struct.unpack(">I", data[begin - 4 : begin])
  chunk = b"IDAT" + b"\xff" * length
  checksum = struct.pack(">I", zlib.crc32(chunk))
  return data[:begin] + chunk + checksum + data[begin + 8 + length :]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_broken_images_are_left_out_and_listed(tmp_path, kind):
  made_images.save(tmp_path / f"m.{kind}", made_images.random(64, 64, 3))
  made_images.save(tmp_path / "z.png", made_images.random(64, 64, 3))
  data = (tmp_path / f"m.{kind}").read_bytes()
  bad = _broken(data)
  if kind != "png":  # they have no checksums, and this may be decodable
    del bad["flipped"]
  else:
    bad["garbage"] = _garbage_in_order(data)
  for name, content in bad.items():
    (tmp_path / f"{name}.{kind}").write_bytes(content)
  (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
  source = folder.FolderSource(tmp_path)
  assert len(source) == 2
  assert [f.name for f in source.unreadable] == sorted(
    ["gone.png", *(f"{name}.{kind}" for name in bad)]
  )
  assert all(f.why and "0x" not in f.why for f in source.unreadable)
  assert source.images(np.arange(2), 8).shape == (2, 8, 8, 3)


def test_what_cannot_be_decoded_is_left_out_too(tmp_path, monkeypatch):
  made_images.save(tmp_path / "a.jpg", made_images.random(9, 9, 3))
  made_images.save(tmp_path / "b.png", made_images.random(90, 90, 3))
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
  source = folder.FolderSource(tmp_path)
  [file] = source.unreadable
  assert (len(source), file.name) == (1, "b.png")


def test_an_empty_folder_says_what_it_holds(tmp_path):
  (tmp_path / "a.mov").write_bytes(b"")
  (tmp_path / "b.png").write_bytes(b"version https://git-lfs.github.com/spec")
  with pytest.raises(
    errors.EcosError, match=r"1 \.mov; 1 .* b\.png: .*git lfs"
  ):
    folder.FolderSource(tmp_path)


def test_a_drawing_on_transparency_is_laid_on_the_ground(tmp_path):
  drawing = np.zeros((8, 8, 4), np.uint8)
  drawing[2:6, 2:6, 3] = 255
  made_images.save(tmp_path / "x.png", drawing)
  for ground, level in ((images.WHITE, 255), (images.BLACK, 0)):
    source = folder.FolderSource(tmp_path, ground=ground)
    expected = np.where(drawing[..., 3:], 0, level)
    got = source.images(np.array([0]), 8)[0]
    np.testing.assert_array_equal(got, np.repeat(expected, 3, -1))
    stored = images.decode(source.encoded(0), "x")
    np.testing.assert_array_equal(np.asarray(stored), got)


def test_parts_are_disjoint_together_all_and_depend_on_no_other_file(tmp_path):
  for i in range(60):
    made_images.save(tmp_path / f"{i}.png", made_images.random(2, 2, 3))
  cuts = [(0, 30), (30, 70), (70, 100)]

  def names(part):
    source = folder.FolderSource(tmp_path, part=part)
    return set(source.names)

  parts = [names(cut) for cut in cuts]
  assert sum(map(len, parts)) == len(set.union(*parts)) == 60
  assert 8 <= len(parts[0]) <= 28
  (tmp_path / "7.png").unlink()
  assert [names(cut) for cut in cuts] == [part - {"7.png"} for part in parts]


def test_a_large_jpeg_is_as_if_decoded_in_full(tmp_path):
  y, x = np.mgrid[:512, :640]
  pixels = np.stack([y // 3, x // 4, (x + y) // 5], -1).astype(np.uint8)
  made_images.save(tmp_path / "a.jpg", pixels, quality=95)
  got = folder.FolderSource(tmp_path).images(np.array([0]), 32)[0]
  whole = Image.open(tmp_path / "a.jpg").crop((64, 0, 576, 512))
  expected = np.asarray(whole.resize((32, 32), Image.Resampling.BOX))
  assert np.abs(got.astype(int) - expected).max() <= 3


def test_digest_is_of_names_and_contents(tmp_path):
  """A job that copies its files again, with other times, goes on."""
  file = tmp_path / "a" / "x.png"
  made_images.save(file, made_images.random(9, 9, 3))
  kept = tmp_path / "kept.json"
  source = folder.FolderSource(tmp_path / "a", listing=kept)
  digest = source.digest
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  assert folder.FolderSource(tmp_path / "b").digest == digest
  os.utime(file, (1, 1))
  for listing in (None, kept):
    again = folder.FolderSource(tmp_path / "a", listing=listing)
    assert again.digest == digest
  # Touched since it was listed, and the same.
  source.images(np.array([0]), 9)
  (tmp_path / "b" / "x.png").rename(tmp_path / "b" / "y.png")
  assert folder.FolderSource(tmp_path / "b").digest != digest
  made_images.save(file, made_images.random(9, 9, 3, seed=1))
  assert folder.FolderSource(tmp_path / "a").digest != digest


def test_refuses_a_folder_without_images(tmp_path):
  with pytest.raises(errors.EcosError, match=f"{tmp_path} holds no image"):
    folder.FolderSource(tmp_path)
  with pytest.raises(errors.EcosError, match=r"x is not a folder"):
    folder.FolderSource(tmp_path / "x")


def test_the_name_of_a_source_is_text_whatever_the_folder_s_is(tmp_path):
  """It is written into datasets and summaries, after a client has spent."""
  path = tmp_path / os.fsdecode(b"caf\xe9")
  made_images.save(path / "a.png", made_images.random(9, 9, 3))
  assert folder.FolderSource(path).name == "caf\\xe9"

import json
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


def random_images(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, pixels, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **options)


def test_reads_all_kinds_in_sorted_order(tmp_path):
  pixels = random_images(4, 8, 8, 3)
  save(tmp_path / "b/2.PNG", pixels[2])
  save(tmp_path / "b/10.png", pixels[1])
  save(tmp_path / "a.webp", pixels[0], lossless=True)
  save(tmp_path / "c/d/e.jpeg", pixels[3])
  (tmp_path / "notes.txt").write_text("no image")
  (tmp_path / ".hidden.png").write_bytes(b"no image")
  save(tmp_path / ".hidden" / "f.png", pixels[0])
  source = folder.FolderSource(tmp_path)
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
    save(tmp_path / f"{name}.png", random_images(4, 4, 3))
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


@pytest.mark.parametrize("name", ["20240501", "100000", "3000000000"])
def test_a_date_is_no_number_of_a_class(tmp_path, name):
  save(tmp_path / name / "x.png", random_images(4, 4, 3))
  assert folder.FolderSource(tmp_path).classes == 0
  with pytest.raises(errors.EcosError, match="number over 99999") as error:
    folder.FolderSource(tmp_path, ("numbers",))
  assert name not in str(error.value).replace(str(tmp_path), "")


def test_a_class_is_found_in_any_form_of_unicode(tmp_path):
  """macOS writes é as e and an accent, keyboards write one character."""
  save(tmp_path / "cafe\u0301/x.png", random_images(4, 4, 3))
  for names in (["caf\u00e9"], ["cafe\u0301"]):
    source = folder.FolderSource(tmp_path, [*names, "b"])
    assert source.labels(np.arange(1)).tolist() == [0]
  assert source.class_names == {"caf\u00e9"}


def test_other_classes_of_the_same_files(tmp_path):
  for name in ("cat", "dog", "1"):
    save(tmp_path / name / "x.png", random_images(4, 4, 3))
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
  save(tmp_path / "a/x.png", random_images(4, 4, 3))
  lists = (None, ["a", "b"], ["b", "a"])
  digests = {folder.FolderSource(tmp_path, names).digest for names in lists}
  assert len(digests) == 3
  with pytest.raises(errors.EcosError, match=r"`classes` .* twice"):
    folder.FolderSource(tmp_path, ["a", "b", "a"])


def test_encoded_is_the_file_byte_for_byte(tmp_path):
  save(tmp_path / "a.jpg", random_images(9, 5, 3), quality=50)
  save(tmp_path / "b.png", random_images(9, 5))
  save(tmp_path / "c.webp", random_images(9, 5, 3), lossless=True)
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
  save(tmp_path / f"m.{kind}", random_images(64, 64, 3))
  save(tmp_path / "z.png", random_images(64, 64, 3))
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
  save(tmp_path / "a.jpg", random_images(9, 9, 3))
  save(tmp_path / "b.png", random_images(90, 90, 3))
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
  source = folder.FolderSource(tmp_path)
  [file] = source.unreadable
  assert (len(source), file.name) == (1, "b.png")


def test_one_bad_entry_does_not_end_the_listing(tmp_path, monkeypatch):
  """lost+found belongs to root, and links may lead to themselves."""
  save(tmp_path / "pool/a/x.png", random_images(9, 9, 3))
  for name in ("lost+found", "half"):
    (tmp_path / "pool" / name).mkdir()
  save(tmp_path / "pool/half/y.png", random_images(9, 9, 3))
  for name in ("loop.jpg", "latest"):
    (tmp_path / "pool" / name).symlink_to(name)
  scandir = os.scandir

  def refusing(path):
    if path.name in ("lost+found", "half"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  kept = tmp_path / "listing.json"
  with monkeypatch.context() as patch:
    patch.setattr(os, "scandir", refusing)
    source = folder.FolderSource(tmp_path / "pool", listing=kept)
  assert source.names == ["a/x.png"]
  assert {file.name: file.why for file in source.unreadable} == {
    "half/": "Permission denied",
    "lost+found/": "Permission denied",
    "loop.jpg": "Too many levels of symbolic links",
  }
  assert source.others == {"without a suffix": 1}
  # What could not be opened is tried again.
  again = folder.FolderSource(tmp_path / "pool", listing=kept)
  assert again.names == ["a/x.png", "half/y.png"]


def test_files_of_other_kinds_are_counted_by_suffix(tmp_path, caplog):
  pixels = random_images(9, 9, 3)
  for suffix in ("jpg", "jfif", "tif", "bmp", "gif", "avif", "mpo", "WEBP"):
    save(tmp_path / f"pool/x.{suffix}", pixels)
  others = ["a.mov", "b.mov", "c.CR2", "dr smith", "of.john-smith", ".DS_Store"]
  for name in others:
    (tmp_path / "pool" / name).write_bytes(b"")
  counts = {".mov": 2, ".cr2": 1, "without a suffix": 2}
  kept = tmp_path / "listing.json"
  for _ in range(2):
    source = folder.FolderSource(tmp_path / "pool", listing=kept)
    assert len(source) == 8 and not source.unreadable
    assert source.others == counts
  [warning, *_] = caplog.messages
  assert warning.endswith(
    ": 5 of the files do not end as images do and are left out: 2 .mov, 2 "
    "without a suffix, 1 .cr2"
  )


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
  save(tmp_path / "x.png", drawing)
  for ground, level in ((images.WHITE, 255), (images.BLACK, 0)):
    source = folder.FolderSource(tmp_path, ground=ground)
    expected = np.where(drawing[..., 3:], 0, level)
    got = source.images(np.array([0]), 8)[0]
    np.testing.assert_array_equal(got, np.repeat(expected, 3, -1))
    stored = images.decode(source.encoded(0), "x")
    np.testing.assert_array_equal(np.asarray(stored), got)


def _listing(tmp_path, monkeypatch, path):
  """Opens the folder; returns the source and how many files were read."""
  read = []
  check = images.why_unreadable

  def counted(data):
    read.append(len(data))
    return check(data)

  monkeypatch.setattr(images, "why_unreadable", counted)
  source = folder.FolderSource(path, listing=tmp_path / "listing.json")
  monkeypatch.setattr(images, "why_unreadable", check)
  return source, len(read)


def _age(path):
  for place in (path, *path.rglob("*")):
    if place.is_dir():
      os.utime(place, (1, 1))


def test_a_kept_listing_saves_reading_and_changes_nothing(
  tmp_path, monkeypatch
):
  path = tmp_path / "pool"
  for name in ("a/x.png", "a/y.png", "b/c/z.png"):
    save(path / name, random_images(9, 9, 3))
  (path / "a/bad.png").write_bytes(b"no image")
  (path / "a/gone.png").symlink_to(path / "nowhere")
  _age(path)
  fresh = folder.FolderSource(path)
  source, read = _listing(tmp_path, monkeypatch, path)
  assert read == 4
  for _ in range(2):
    again, read = _listing(tmp_path, monkeypatch, path)
    assert read == 0
    assert again.digest == source.digest == fresh.digest
    assert again.unreadable == source.unreadable == fresh.unreadable
  # Not one file is looked at.
  with monkeypatch.context() as patch:
    patch.setattr(os, "scandir", None)
    _listing(tmp_path, patch, path)
  save(path / "b/c/new.png", random_images(9, 9, 3))
  again, read = _listing(tmp_path, monkeypatch, path)
  assert (read, len(again)) == (1, 4)
  assert again.digest == folder.FolderSource(path).digest != source.digest
  # Changed within the resolution of its time: listed again, nothing is read.
  assert (
    None
    in json.loads((tmp_path / "listing.json").read_bytes())["folders"].values()
  )
  (path / "a/x.png").unlink()
  again, read = _listing(tmp_path, monkeypatch, path)
  assert (read, len(again)) == (0, 3)
  assert [f.name for f in again.unreadable] == ["a/bad.png", "a/gone.png"]


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"version": 1}'])
def test_a_damaged_listing_is_made_again(tmp_path, monkeypatch, text):
  path = tmp_path / "pool"
  save(path / "x.png", random_images(9, 9, 3))
  source, _ = _listing(tmp_path, monkeypatch, path)
  (tmp_path / "listing.json").write_text(text)
  again, read = _listing(tmp_path, monkeypatch, path)
  assert (read, again.digest) == (1, source.digest)
  assert _listing(tmp_path, monkeypatch, path)[1] == 0


def test_a_link_to_a_folder_is_left_out_with_a_warning(tmp_path, caplog):
  save(tmp_path / "pool/a/x.png", random_images(9, 9, 3))
  save(tmp_path / "away/y.png", random_images(9, 9, 3))
  (tmp_path / "pool/a/b").symlink_to(tmp_path / "away")
  (tmp_path / "pool/a/z.png").symlink_to(tmp_path / "away/y.png")
  assert len(folder.FolderSource(tmp_path / "pool")) == 2
  [_, warning] = caplog.messages
  assert warning.startswith(f"{tmp_path}/pool: 1 of the files are links to fol")


def test_a_file_changed_in_place_is_found_when_it_is_used(
  tmp_path, monkeypatch
):
  path = tmp_path / "pool"
  save(path / "x.png", random_images(9, 9, 3))
  save(path / "y.png", random_images(9, 9, 3))
  _age(path)
  _listing(tmp_path, monkeypatch, path)
  save(path / "y.png", random_images(9, 9, 3, seed=1))
  _age(path)
  source, read = _listing(tmp_path, monkeypatch, path)
  assert read == 0
  source.images(np.array([0]), 9)
  for use in (
    lambda: source.images(np.array([1]), 9),
    lambda: source.encoded(1),
  ):
    with pytest.raises(errors.EcosError, match=r"y\.png changed"):
      use()


def test_parts_are_disjoint_together_all_and_depend_on_no_other_file(tmp_path):
  for i in range(60):
    save(tmp_path / f"{i}.png", random_images(2, 2, 3))
  cuts = [(0, 30), (30, 70), (70, 100)]

  def names(part):
    source = folder.FolderSource(tmp_path, part=part)
    return {file.name for file in source._files}

  parts = [names(cut) for cut in cuts]
  assert sum(map(len, parts)) == len(set.union(*parts)) == 60
  assert 8 <= len(parts[0]) <= 28
  (tmp_path / "7.png").unlink()
  assert [names(cut) for cut in cuts] == [part - {"7.png"} for part in parts]


def test_a_large_jpeg_is_as_if_decoded_in_full(tmp_path):
  y, x = np.mgrid[:512, :640]
  pixels = np.stack([y // 3, x // 4, (x + y) // 5], -1).astype(np.uint8)
  save(tmp_path / "a.jpg", pixels, quality=95)
  got = folder.FolderSource(tmp_path).images(np.array([0]), 32)[0]
  whole = Image.open(tmp_path / "a.jpg").crop((64, 0, 576, 512))
  expected = np.asarray(whole.resize((32, 32), Image.Resampling.BOX))
  assert np.abs(got.astype(int) - expected).max() <= 3


def test_digest_is_of_names_and_contents(tmp_path):
  """A job that copies its files again, with other times, goes on."""
  file = tmp_path / "a" / "x.png"
  save(file, random_images(9, 9, 3))
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
  save(file, random_images(9, 9, 3, seed=1))
  assert folder.FolderSource(tmp_path / "a").digest != digest


def test_refuses_a_folder_without_images(tmp_path):
  with pytest.raises(errors.EcosError, match="holds no image"):
    folder.FolderSource(tmp_path)
  with pytest.raises(errors.EcosError, match=r"x is not a folder"):
    folder.FolderSource(tmp_path / "x")


def test_names_that_are_no_text_and_pipes(tmp_path):
  save(tmp_path / "a.png", random_images(9, 9, 3))
  (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
  os.mkfifo(tmp_path / "pipe.png")
  source = folder.FolderSource(tmp_path, listing=tmp_path / "listing")
  assert len(source) == 1 and not source.unreadable
  assert source.images(np.array([0]), 8).shape == (1, 8, 8, 3)
  again = folder.FolderSource(tmp_path, listing=tmp_path / "listing")
  assert again.digest == source.digest


def test_links_to_pipes_and_devices_are_not_read(tmp_path):
  """They would be read for ever."""
  save(tmp_path / "a.png", random_images(9, 9, 3))
  os.mkfifo(tmp_path / "pipe")
  for name, target in (("p", tmp_path / "pipe"), ("z", "/dev/zero")):
    (tmp_path / f"{name}.png").symlink_to(target)
  source = folder.FolderSource(tmp_path)
  assert source.names == ["a.png"]
  assert {file.why for file in source.unreadable} == {"No regular file"}


def test_unreadable_files_are_counted_and_not_named(tmp_path, caplog):
  save(tmp_path / "a.png", random_images(9, 9, 3))
  for name in ("patient_7.png", "patient_8.png"):
    (tmp_path / name).write_bytes(b"no image")
  source = folder.FolderSource(tmp_path)
  [warning] = caplog.messages
  assert warning.startswith(f"{tmp_path}: 2 of the files cannot be read")
  assert "patient" not in warning
  assert [file.name for file in source.unreadable] == [
    "patient_7.png",
    "patient_8.png",
  ]


def test_links_out_of_the_folder_are_followed_and_told(tmp_path, caplog):
  save(tmp_path / "other/b.png", random_images(9, 9, 3))
  save(tmp_path / "own/a.png", random_images(9, 9, 3))
  (tmp_path / "own/inside.png").symlink_to(tmp_path / "own/a.png")
  assert len(folder.FolderSource(tmp_path / "own")) == 2
  assert not caplog.messages
  (tmp_path / "own/outside.png").symlink_to("../other/b.png")
  assert len(folder.FolderSource(tmp_path / "own")) == 3
  [warning] = caplog.messages
  assert "1 of the files are links to files outside of the folder" in warning


def test_the_name_of_a_source_is_text_whatever_the_folder_s_is(tmp_path):
  """It is written into datasets and summaries, after a client has spent."""
  path = tmp_path / os.fsdecode(b"caf\xe9")
  save(path / "a.png", random_images(9, 9, 3))
  assert folder.FolderSource(path).name == "caf\\xe9"

import json
import os

import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.data import folder
from ecos_jax.data import images
from tests.data import made_images


def test_one_bad_entry_does_not_end_the_listing(tmp_path, monkeypatch):
  """lost+found belongs to root, and links may lead to themselves."""
  made_images.save(tmp_path / "pool/a/x.png", made_images.random(9, 9, 3))
  for name in ("lost+found", "half"):
    (tmp_path / "pool" / name).mkdir()
  made_images.save(tmp_path / "pool/half/y.png", made_images.random(9, 9, 3))
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
  pixels = made_images.random(9, 9, 3)
  for suffix in ("jpg", "jfif", "tif", "bmp", "gif", "avif", "mpo", "WEBP"):
    made_images.save(tmp_path / f"pool/x.{suffix}", pixels)
  others = ["a.mov", "b.mov", "c.CR2", "dr smith", "of.john-smith", ".DS_Store"]
  # As macOS leaves them on a disk that it does not know.
  others += ["._x.jpg", "._x.tif"]
  for name in others:
    (tmp_path / "pool" / name).write_bytes(b"")
  counts = {".mov": 2, ".cr2": 1, "without a suffix": 2}
  counts |= {"hidden .jpg": 1, "hidden .tif": 1}
  kept = tmp_path / "listing.json"
  for _ in range(2):
    source = folder.FolderSource(tmp_path / "pool", listing=kept)
    assert len(source) == 8 and not source.unreadable
    assert source.others == counts
  [warning, *_] = caplog.messages
  assert warning.endswith(
    ": 7 of the files are no images by their names and are left out: 2 .mov, 2 "
    "without a suffix, 1 .cr2, 1 hidden .jpg, 1 hidden .tif"
  )


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
    made_images.save(path / name, made_images.random(9, 9, 3))
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
  made_images.save(path / "b/c/new.png", made_images.random(9, 9, 3))
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
  made_images.save(path / "x.png", made_images.random(9, 9, 3))
  source, _ = _listing(tmp_path, monkeypatch, path)
  (tmp_path / "listing.json").write_text(text)
  again, read = _listing(tmp_path, monkeypatch, path)
  assert (read, again.digest) == (1, source.digest)
  assert _listing(tmp_path, monkeypatch, path)[1] == 0


def test_a_link_to_a_folder_is_left_out_with_a_warning(tmp_path, caplog):
  made_images.save(tmp_path / "pool/a/x.png", made_images.random(9, 9, 3))
  made_images.save(tmp_path / "away/y.png", made_images.random(9, 9, 3))
  (tmp_path / "pool/a/b").symlink_to(tmp_path / "away")
  (tmp_path / "pool/a/z.png").symlink_to(tmp_path / "away/y.png")
  assert len(folder.FolderSource(tmp_path / "pool")) == 2
  [_, warning] = caplog.messages
  assert warning.startswith(f"{tmp_path}/pool: 1 of the files are links to fol")


def test_a_file_changed_in_place_is_found_when_it_is_used(
  tmp_path, monkeypatch
):
  path = tmp_path / "pool"
  made_images.save(path / "x.png", made_images.random(9, 9, 3))
  made_images.save(path / "y.png", made_images.random(9, 9, 3))
  _age(path)
  _listing(tmp_path, monkeypatch, path)
  made_images.save(path / "y.png", made_images.random(9, 9, 3, seed=1))
  _age(path)
  source, read = _listing(tmp_path, monkeypatch, path)
  assert read == 0
  source.images(np.array([0]), 9)
  for use in (
    lambda: source.images(np.array([1]), 9),
    lambda: source.encoded(1),
  ):
    with pytest.raises(errors.EcosError, match=r"y\.png of .*pool changed"):
      use()


def test_names_that_are_no_text_and_pipes(tmp_path):
  made_images.save(tmp_path / "a.png", made_images.random(9, 9, 3))
  (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
  os.mkfifo(tmp_path / "pipe.png")
  source = folder.FolderSource(tmp_path, listing=tmp_path / "listing")
  assert len(source) == 1 and not source.unreadable
  assert source.images(np.array([0]), 8).shape == (1, 8, 8, 3)
  again = folder.FolderSource(tmp_path, listing=tmp_path / "listing")
  assert again.digest == source.digest


def test_links_to_pipes_and_devices_are_not_read(tmp_path):
  """They would be read for ever."""
  made_images.save(tmp_path / "a.png", made_images.random(9, 9, 3))
  os.mkfifo(tmp_path / "pipe")
  for name, target in (("p", tmp_path / "pipe"), ("z", "/dev/zero")):
    (tmp_path / f"{name}.png").symlink_to(target)
  source = folder.FolderSource(tmp_path)
  assert source.names == ["a.png"]
  assert {file.why for file in source.unreadable} == {"No regular file"}


def test_unreadable_files_are_counted_and_not_named(tmp_path, caplog):
  made_images.save(tmp_path / "a.png", made_images.random(9, 9, 3))
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
  made_images.save(tmp_path / "other/b.png", made_images.random(9, 9, 3))
  made_images.save(tmp_path / "own/a.png", made_images.random(9, 9, 3))
  (tmp_path / "own/inside.png").symlink_to(tmp_path / "own/a.png")
  assert len(folder.FolderSource(tmp_path / "own")) == 2
  assert not caplog.messages
  (tmp_path / "own/outside.png").symlink_to("../other/b.png")
  assert len(folder.FolderSource(tmp_path / "own")) == 3
  [warning] = caplog.messages
  assert "1 of the files are links to files outside of the folder" in warning

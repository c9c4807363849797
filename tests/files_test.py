import json
import os

import pytest

from ecos_jax import files


def test_a_written_file_is_whole_and_alone(tmp_path):
  path = tmp_path / "file"
  files.write(path, b"first")
  files.write(path, b"sec", memoryview(b"ond"))
  assert path.read_bytes() == b"second"
  assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch):
  path = tmp_path / "file"
  files.write(path, b"first")

  def fail(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files.os, "fsync", fail)
  with pytest.raises(OSError, match="No space"):
    files.write(path, b"second")
  assert path.read_bytes() == b"first"
  assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
  path = tmp_path / "value.json"
  files.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    files.write_json(path, {"a": object()})
  assert json.loads(path.read_text()) == {"a": 1}


def test_two_writers_of_one_path_do_not_mix(tmp_path):
  path = tmp_path / "file"
  with files.replacing(path) as a, files.replacing(path) as b:
    a.write_bytes(b"aaaa")
    b.write_bytes(b"bb")
  assert path.read_bytes() == b"aaaa"
  assert list(tmp_path.iterdir()) == [path]


def test_a_tree_is_synced_with_all_that_is_in_it(tmp_path, monkeypatch):
  (tmp_path / "a/b").mkdir(parents=True)
  for name in ("top", "a/file", "a/b/file"):
    (tmp_path / name).write_text(name)
  (tmp_path / "broken").symlink_to("nowhere")
  synced = []
  monkeypatch.setattr(
    files.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino)
  )
  files.sync_tree(tmp_path)
  names = (".", "a", "a/b", "top", "a/file", "a/b/file")
  assert sorted(synced) == sorted((tmp_path / n).stat().st_ino for n in names)


def test_a_lock_is_held_until_its_file_is_closed(tmp_path):
  path = tmp_path / "lock"
  with path.open("a") as first, path.open("a") as second:
    assert files.lock(first)
    assert not files.lock(second, wait=False)
    first.close()
    assert files.lock(second, wait=False)


def test_digest_is_of_the_parts_in_order():
  # sha256 of b"abc", from FIPS 180-2.
  expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  assert files.digest(b"a", b"bc") == expected

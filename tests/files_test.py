import errno
import fcntl
import hashlib
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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number):
  def flock(file, kind):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  with (
    (tmp_path / "a").open("a") as file,
    pytest.raises(files.NoLocksError, match=r"no locks .*NFS"),
  ):
    files.lock(file)


def test_readers_share_a_lock(tmp_path):
  """NFS refuses an exclusive lock of a file that is open for reading."""
  path = tmp_path / "a"
  path.write_bytes(b"")
  with path.open("rb") as one, path.open("rb") as two, path.open("a") as writer:
    assert files.lock(one, wait=False) and files.lock(two, wait=False)
    assert not files.lock(writer, wait=False)


def test_file_systems_that_sync_no_folders_and_have_no_permissions(
  tmp_path, monkeypatch
):
  """As CIFS and exFAT; a file that cannot be synced remains an error."""
  real, wrong = os.fsync, tmp_path

  def fsync(descriptor):
    if os.path.samestat(os.fstat(descriptor), wrong.stat()):
      raise OSError(errno.EINVAL, "Invalid argument")
    real(descriptor)

  def fchmod(descriptor, mode):
    raise PermissionError(errno.EPERM, "Operation not permitted")

  monkeypatch.setattr(os, "fsync", fsync)
  monkeypatch.setattr(os, "fchmod", fchmod)
  files.write(tmp_path / "a", b"content", mode=0o600)
  assert (tmp_path / "a").read_bytes() == b"content"
  wrong = tmp_path / "a"
  with pytest.raises(OSError, match="Invalid argument"):
    files.sync(tmp_path / "a")


def test_a_digest_is_kept_until_the_file_changes(tmp_path, monkeypatch):
  path, kept = tmp_path / "a", tmp_path / "kept"
  path.write_bytes(b"abc")
  expected = files.digest(b"abc")
  for content in (None, b"", b"{}", b"[1]"):
    if content is not None:
      kept.write_bytes(content)
    assert files.content_digest(path, kept) == expected
  with monkeypatch.context() as patch:
    patch.setattr(hashlib, "file_digest", None)
    assert files.content_digest(path, kept) == expected
  path.write_bytes(b"abcd")
  assert files.content_digest(path, kept) == files.digest(b"abcd")
  assert files.content_digest(path) == files.digest(b"abcd")


def test_names_are_sorted_as_people_count():
  names = ["part-10", "part-2", "part-1", "b", "part-02", "10", "9"]
  assert sorted(names, key=files.natural) == [
    *("9", "10", "b", "part-1", "part-02", "part-2", "part-10")
  ]


def test_digest_is_of_the_parts_in_order():
  # sha256 of b"abc", from FIPS 180-2.
  expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  assert files.digest(b"a", b"bc") == expected

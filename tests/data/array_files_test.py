import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.data import array_files


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_pointer_of_git_lfs_says_what_it_needs(tmp_path, name):
  pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
  (tmp_path / name).write_bytes(pointer)
  with pytest.raises(errors.EcosError, match="git lfs pull"):
    array_files.read(tmp_path / name)


def _zeros(path, shape, count):
  """Writes an .npz whose array is `count` zeros, whatever its shape says."""
  head = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    head, {"descr": "|u1", "fortran_order": False, "shape": shape}
  )
  with (
    zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    archive.open("images.npy", "w") as member,
  ):
    member.write(head.getvalue())
    for start in range(0, count, 2**24):
      member.write(bytes(min(2**24, count - start)))
  return path


@pytest.mark.parametrize(
  ("shape", "count", "said"),
  [
    ((2**29,), 2**29, "would inflate to more than 100 times"),
    ((2**40,), 9, "has not the size that it says"),
    ((2, 2), 9, "has not the size that it says"),
  ],
)
def test_arrays_far_larger_than_their_file_are_refused(
  tmp_path, shape, count, said
):
  path = _zeros(tmp_path / "own.npz", shape, count)
  tracemalloc.start()
  try:
    with pytest.raises(errors.EcosError, match=f"cannot read .*{said}"):
      array_files.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2e6
  finally:
    tracemalloc.stop()


def test_many_arrays_together_are_bounded_too(tmp_path, monkeypatch):
  monkeypatch.setattr(array_files, "_INFLATED", 2**20)
  array = np.zeros(2**19, np.uint8)
  path = tmp_path / "own.npz"
  np.savez_compressed(path, **{f"a{i}": array for i in range(9)})
  with pytest.raises(errors.EcosError, match="would inflate to more than 100"):
    array_files.read(path)
  np.savez(path, **{f"a{i}": array for i in range(9)})
  assert len(array_files.read(path)) == 9


def test_a_damaged_archive_is_told(tmp_path):
  with zipfile.ZipFile(tmp_path / "own.npz", "w", zipfile.ZIP_LZMA) as archive:
    archive.writestr("images.npy", bytes(1000))
  data = bytearray((tmp_path / "own.npz").read_bytes())
  data[data.index(b"images.npy") + 20] ^= 255
  (tmp_path / "own.npz").write_bytes(data)
  with pytest.raises(errors.EcosError, match=r"cannot read .*damaged"):
    array_files.read(tmp_path / "own.npz")
  # An archive under another name is no array.
  np.savez(tmp_path / "own.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
  (tmp_path / "own.npz").rename(tmp_path / "own.npy")
  with pytest.raises(
    errors.EcosError, match=r"cannot read .*no file of arrays"
  ):
    array_files.read(tmp_path / "own.npy")


def test_compressed_arrays_are_read(tmp_path):
  pixels = np.zeros((50, 28, 28, 3), np.uint8)
  labels = np.arange(50)
  np.savez_compressed(tmp_path / "own.npz", images=pixels, labels=labels)
  arrays = array_files.read(tmp_path / "own.npz")
  np.testing.assert_array_equal(arrays["images"], pixels)
  np.testing.assert_array_equal(arrays["labels"], labels)

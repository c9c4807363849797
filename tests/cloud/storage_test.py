import pytest

from ecos_jax.cloud import storage


def test_reads_and_checksums(place):
  folder = storage.Folder(place)
  folder.make()
  folder.write("a", b"12", memoryview(b"345"))
  assert folder.sizes() == {"a": 5}
  view = bytearray(3)
  folder.read_into("a", 1, memoryview(view))
  assert view == b"234"
  # Of "12345", by sha256sum.
  assert folder.sha256("a").startswith("5994471abb01112afcc18159f6cc74b4")
  with pytest.raises(storage.BankError, match=r"a is truncated: delete .*bank"):
    folder.read_into("a", 3, memoryview(view))

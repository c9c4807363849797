import threading

import pytest

from ecos_jax.cloud import storage


@pytest.mark.parametrize("count", [1, 3, 20])
def test_ahead_keeps_the_order_and_the_distance(count):
  taken = []

  def items():
    for item in range(10):
      taken.append(item)
      yield item

  for place, got in enumerate(storage.ahead(lambda i: -i, items(), count)):
    assert got == -place
    assert len(taken) == min(place + count + 1, 10)


def test_ahead_computes_at_the_same_time():
  barrier = threading.Barrier(3)
  results = storage.ahead(lambda i: barrier.wait(timeout=60), range(6), 3)
  assert len(list(results)) == 6


def test_ahead_ends_what_was_begun_before_an_error_goes_up():
  done = []

  def work(item):
    if item == 1:
      raise ValueError("one")
    done.append(item)

  with pytest.raises(ValueError, match="one"):
    list(storage.ahead(work, range(10), 4))
  assert 0 in done and len(done) <= 5


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

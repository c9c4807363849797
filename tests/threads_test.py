import threading

import pytest

from ecos_jax import threads


@pytest.mark.parametrize("count", [1, 3, 20])
def test_ahead_keeps_the_order_and_the_distance(count):
  taken = []

  def items():
    for item in range(10):
      taken.append(item)
      yield item

  for place, got in enumerate(threads.ahead(lambda i: -i, items(), count)):
    assert got == -place
    assert len(taken) == min(place + count + 1, 10)


def test_ahead_computes_at_the_same_time():
  barrier = threading.Barrier(3)
  results = threads.ahead(lambda i: barrier.wait(timeout=60), range(6), 3)
  assert len(list(results)) == 6


def test_ahead_ends_what_was_begun_before_an_error_goes_up():
  done = []

  def work(item):
    if item == 1:
      raise ValueError("one")
    done.append(item)

  with pytest.raises(ValueError, match="one"):
    list(threads.ahead(work, range(10), 4))
  assert 0 in done and len(done) <= 5

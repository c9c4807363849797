"""Work that threads do ahead of its use."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ahead(
  function: Callable[[_Item], _Result], items: Iterable[_Item], count: int
) -> Iterator[_Result]:
  """Yields function(item) in order; threads compute the next `count` meanwhile.

  What threads have begun ends before the iteration does, or its error goes up.
  """
  with futures.ThreadPoolExecutor(count) as threads:
    pending = collections.deque[futures.Future[_Result]]()
    for item in items:
      pending.append(threads.submit(function, item))
      if len(pending) > count:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()

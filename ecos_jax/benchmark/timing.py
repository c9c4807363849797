"""Timing: of one call, and of several implementations in turn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import tempfile
import time
from typing import Any

from ecos_jax import children


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
  """Returns the seconds that a function took, and its result."""
  begin = time.perf_counter()
  result = function()
  return time.perf_counter() - begin, result


def rotated(entries: Sequence[Any], i: int) -> list[Any]:
  """Returns the entries in the order of round i: each round begins one on."""
  turn = i % len(entries) if entries else 0
  return [*entries[turn:], *entries[:turn]]


def rounds(
  jobs: Sequence[Mapping[str, Any]],
  environment: Mapping[str, str],
  count: int,
) -> Iterator[tuple[str, int, dict[str, Any] | children.ChildError]]:
  """Yields (implementation, round, result); every round calls all of them.

  Each job has a child process (`calls.start`), which is paused between its
  calls. Round 0 does not count. An implementation that fails yields its error,
  and is not called again.

  Args:
    jobs: One child process each; `names` are its implementations.
    environment: Of the processes.
    count: Rounds that count.
  """
  with contextlib.ExitStack() as stack:
    todo: list[tuple[str, children.Child]] = []
    for job in jobs:
      try:
        child = children.Child(
          "ecos_jax.benchmark.calls:start",
          job,
          environment=environment,
          log=tempfile.TemporaryFile(),  # noqa: SIM115 (closed with the child)
        )
      except children.ChildError as error:
        for name in job["names"]:
          yield name, 0, error
        continue
      stack.callback(child.close)
      child.pause()
      todo += [(name, child) for name in job["names"]]
    for i in range(count + 1):
      for entry in rotated(todo, i):
        name, child = entry
        child.resume()
        try:
          result = child.call(name)
        except children.ChildError as error:
          todo.remove(entry)
          result = error
        else:
          child.pause()
        yield name, i, result

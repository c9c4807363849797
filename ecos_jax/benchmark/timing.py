"""Rounds over implementations in child processes, one awake at a time."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

from ecos_jax import errors


class WorkerError(errors.EcosError):
  """A child process that failed; the message is the end of what it said."""


class Worker:
  """A child process (`worker`), stopped but for the calls it is given."""

  def __init__(self, job: Mapping[str, Any], environment: Mapping[str, str]):
    """Starts the process; `first` is its first answer."""
    # A file, not a pipe: nobody reads while the child writes. `close` closes.
    self._said = tempfile.TemporaryFile()  # noqa: SIM115
    reading, writing = os.pipe()
    self._process = subprocess.Popen(
      [
        sys.executable,
        "-m",
        "ecos_jax.benchmark.worker",
        str(writing),
        json.dumps(job),
      ],
      stdin=subprocess.PIPE,
      stdout=self._said,
      stderr=self._said,
      pass_fds=[writing],
      env=dict(environment),
    )
    os.close(writing)
    self._replies = os.fdopen(reading)
    try:
      self.first = self._answer()
    except BaseException:
      self.close()
      raise

  def _answer(self) -> dict[str, Any]:
    line = self._replies.readline()
    if not line:
      code = self._process.wait()
      self._said.seek(0)
      said = self._said.read().decode(errors="replace").strip().splitlines()
      reason = said[-1] if code == 1 and said else f"exit code {code}"
      raise WorkerError(reason)
    with contextlib.suppress(ProcessLookupError):
      self._process.send_signal(signal.SIGSTOP)
    return json.loads(line)

  def call(self, implementation: str) -> dict[str, Any]:
    """Returns what one call of an implementation gave.

    Raises:
      WorkerError: The process ended.
    """
    assert self._process.stdin is not None
    self._process.send_signal(signal.SIGCONT)
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(f"{implementation}\n".encode())
      self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()
    assert self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._replies.close()
    self._said.close()


def once(job: Mapping[str, Any], environment: Mapping[str, str]) -> dict:
  """Returns the only answer of a child process.

  Raises:
    WorkerError: It failed.
  """
  worker = Worker(job, environment)
  worker.close()
  return worker.first


def rounds(
  jobs: Sequence[Mapping[str, Any]],
  environment: Mapping[str, str],
  count: int,
) -> Iterator[tuple[str, int, dict[str, Any] | WorkerError]]:
  """Yields (implementation, round, result), interleaved, in rotated order.

  Round 0 is not to be counted. One that fails yields its error, and no more.

  Args:
    jobs: One process each; `names` of each: its implementations.
    environment: Of the processes.
    count: Rounds that count.
  """
  with contextlib.ExitStack() as stack:
    todo: list[tuple[str, Worker]] = []
    for job in jobs:
      try:
        worker = Worker(job, environment)
      except WorkerError as error:
        for name in job["names"]:
          yield name, 0, error
        continue
      stack.callback(worker.close)
      todo += [(name, worker) for name in job["names"]]
    for i in range(count + 1):
      turn = i % len(todo) if todo else 0
      for entry in todo[turn:] + todo[:turn]:
        name, worker = entry
        try:
          yield name, i, worker.call(name)
        except WorkerError as error:
          todo.remove(entry)
          yield name, i, error

"""Child processes that answer questions, one at a time.

A parent starts a child with the name of a function and a job. The child calls
that function with the job; what it returns is called with each question. Jobs,
questions and answers are JSON: questions come on the child's standard input,
answers go back through a pipe of their own. All that the child prints goes to a
log.

A child ends with its parent, even with one that is killed. Ctrl-C reaches the
parent alone.
"""

from collections.abc import Mapping
import contextlib
import ctypes
import json
import os
from pathlib import Path
import pkgutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

from ecos_jax import errors

_PR_SET_PDEATHSIG = 1


class ChildError(errors.EcosError):
  """A child process that ended before it answered; the message says how."""


class Child:
  """A running child process.

  On Linux it also ends with the thread that started it.
  """

  def __init__(
    self,
    start: str,
    job: Any,
    *,
    environment: Mapping[str, str],
    log: Path | None = None,
  ):
    """Starts the process, and waits until it is ready for questions.

    Args:
      start: `package.module:function`; called with `job` in the child, it
        returns the function that answers questions.
      job: JSON.
      environment: Variables of the child.
      log: File to append what the child prints to; None: it is not kept.

    Raises:
      ChildError: `start` failed.
    """
    # `close` closes it.
    self._log = log.open("a+b") if log else tempfile.TemporaryFile()  # noqa: SIM115
    self._printed = self._log.seek(0, os.SEEK_END)
    reading, writing = os.pipe()
    self.process = subprocess.Popen(
      [
        *(sys.executable, "-m", "ecos_jax.children"),
        *(str(writing), start, json.dumps(job)),
      ],
      stdin=subprocess.PIPE,
      text=True,
      stdout=self._log,
      stderr=self._log,
      pass_fds=[writing],
      env=dict(environment),
    )
    os.close(writing)
    assert self.process.stdin is not None
    self._questions, self._answers = self.process.stdin, os.fdopen(reading)
    try:
      self._answer()
    except BaseException:
      self.close()
      raise

  def call(self, question: Any) -> Any:
    """Returns the answer to a question.

    Raises:
      ChildError: The process ended.
    """
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps(question), file=self._questions, flush=True)
    return self._answer()

  def _answer(self) -> Any:
    line = self._answers.readline()
    if line:
      return json.loads(line)
    code = self.process.wait()
    self._log.seek(self._printed)
    printed = self._log.read().decode(errors="replace").strip().splitlines()
    if code == 1 and printed:  # The last line of a traceback.
      raise ChildError(printed[-1])
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    hint = ": perhaps it was out of memory" if code == -signal.SIGKILL else ""
    raise ChildError(f"the worker process ended with {how}{hint}")

  def pause(self) -> None:
    """Stops the process: its idle threads take no time from others."""
    with contextlib.suppress(ProcessLookupError):
      self.process.send_signal(signal.SIGSTOP)

  def resume(self) -> None:
    """Lets a paused process go on."""
    self.process.send_signal(signal.SIGCONT)

  def close(self) -> None:
    """Ends the process."""
    self.process.kill()
    self.process.wait()
    with contextlib.suppress(BrokenPipeError):
      self._questions.close()
    self._answers.close()
    self._log.close()


def once(function: str, argument: Any, environment: Mapping[str, str]) -> Any:
  """Returns the result of a function that a child process calls.

  Args:
    function: `package.module:function`.
    argument: JSON.
    environment: Variables of the child.

  Raises:
    ChildError: It failed.
  """
  child = Child(
    "pkgutil:resolve_name",
    function,
    environment=environment,
  )
  with contextlib.closing(child):
    return child.call(argument)


def _serve(answers: int, start: str, job: str) -> None:
  """Runs in the child: answers until standard input ends."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with os.fdopen(answers, "w", buffering=1) as replies:
    answer = pkgutil.resolve_name(start)(json.loads(job))
    print("null", file=replies)
    for line in sys.stdin:
      print(json.dumps(answer(json.loads(line))), file=replies)


if __name__ == "__main__":
  _serve(int(sys.argv[1]), *sys.argv[2:])

"""Stands in for `python -m MODULE FLAGS`, in a fork of a process with imports.

  python -IS tests/forked.py SOCKET -m MODULE FLAGS

tests/forks.py listens on the socket. It takes milliseconds in place of seconds.
"""

from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path
import signal
import socket
import sys
from typing import IO, Any


def start(
  path: str, streams: Sequence[int], job: Mapping[str, Any]
) -> tuple[int, IO[str]]:
  """Starts a command.

  Args:
    path: Of the socket.
    streams: File descriptors of its stdin, stdout and stderr.
    job: See tests/forks.py.

  Returns:
    The process id, and a file that gets a line with the exit code.
  """
  with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    socket.send_fds(connection, [json.dumps(job).encode()], streams)
    lines = connection.makefile()
  return int(lines.readline()), lines


def _main(path: str, option: str, module: str, *flags: str) -> None:
  assert option == "-m"
  job = {"module": module, "flags": flags, "patched": None}
  job |= {"environment": dict(os.environ), "folder": str(Path.cwd())}
  pid, lines = start(path, (0, 1, 2), job)
  signal.signal(signal.SIGTERM, lambda number, frame: os.kill(pid, number))
  code = int(lines.readline())
  # As bash tells of a signal.
  sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
  _main(*sys.argv[1:])

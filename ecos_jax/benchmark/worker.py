"""The child process of one implementation of one cell.

The parent writes a line to its standard input for each call and gets a JSON
line on the file descriptor given as the first argument. What libraries print
goes to standard error.
"""

from collections.abc import Callable
import ctypes
import importlib
import json
import os
from pathlib import Path
import signal
import sys
from typing import Any

from ecos_jax.benchmark import calls
from ecos_jax.benchmark import cells
from ecos_jax.benchmark import machine
from ecos_jax.benchmark import peers

_PR_SET_PDEATHSIG = 1


def _device_peak() -> int | None:
  import jax

  stats = jax.local_devices()[0].memory_stats()
  return (stats or {}).get("peak_bytes_in_use")


def _import(names: list[str]) -> Callable[..., calls.Call]:
  """Imports what implementations need, and returns what makes their calls."""
  if names[0] in peers.NAMES:
    importlib.import_module(peers.get(names[0]).module)
    return calls.peer_call
  from ecos_jax.benchmark import ours

  ours.jax.local_devices()
  return ours.our_call


def main() -> None:
  """Serves calls until standard input ends."""
  if sys.platform == "linux":
    # A parent that is killed takes its stopped children along.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  job = json.loads(sys.argv[2])
  with os.fdopen(int(sys.argv[1]), "w", buffering=1) as replies:

    def reply(value: dict[str, Any]) -> None:
      print(json.dumps(value), file=replies)

    if job["task"] == "describe":
      reply(machine.describe())
      return
    cell = cells.Cell(job["stage"], tuple(job["shape"]), job["data"])
    options = cells.Options(**job["options"])
    folder = Path(job["folder"])
    if job["task"] == "prepare":
      cells.prepare(cell, options, folder)
      reply({})
      return
    names = job["names"]
    make = _import(names)
    bare = machine.resident_bytes()
    prepared = {name: make(name, cell, options, folder) for name in names}
    reply({})
    for line in sys.stdin:
      machine.resident_bytes()
      result = prepared[line.strip()]()
      result["peak_bytes"] = machine.peak_resident_bytes() - bare
      if "jax" in sys.modules:
        result["device_peak_bytes"] = _device_peak()
      reply(result)


if __name__ == "__main__":
  main()

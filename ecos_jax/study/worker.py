"""The child process that runs cells, one after the other.

It keeps what is slow to come by: JAX, compiled programs, the data. The parent
writes a line of JSON to its standard input for each cell and gets one back on
the file descriptor that the first argument names. The second is the workdir of
the study, the third the core to stay on, if any. What is printed goes to the
log that the parent opened.
"""

import ctypes
import json
import os
from pathlib import Path
import signal
import sys
import time
import traceback
from typing import Any

from absl import flags

from ecos_jax import errors
from ecos_jax import pipeline
from ecos_jax.config import reading
from ecos_jax.study import simulation
from ecos_jax.study import store

_PR_SET_PDEATHSIG = 1


def run(order: dict[str, Any], workdir: Path, load: Any) -> dict[str, Any]:
  """Returns the row of a cell, or its `error`.

  Args:
    order: `name`, `config` (all fields, flat) and `wanted` figures of the cell.
    workdir: Of the study.
    load: Reads the data.
  """
  begin = time.monotonic()
  print(f"\n{order['name']}", flush=True)
  path = workdir / "cells" / order["name"]
  config = reading.read(order["config"])
  try:
    summary = pipeline.run(
      config,
      path,
      enter=lambda path: store.SharingWorkdir(path, workdir / "stages"),
      load=load,
    )
    assert summary is not None  # no client is remote: Study.validate
    measured = simulation.measure(
      config, path, summary, order["wanted"], load(config.data, config.seed)
    )
  except Exception as error:
    traceback.print_exc()
    known = isinstance(error, errors.EcosError)
    return {
      "error": str(error) if known else f"{type(error).__name__}: {error}",
      "seconds": time.monotonic() - begin,
    }
  return {
    "summary": summary,
    "simulation": measured,
    "seconds": round(time.monotonic() - begin, 3),
  }


def main() -> None:
  """Serves cells until standard input ends."""
  if sys.platform == "linux":
    # A study that is killed takes its workers along.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  if sys.argv[3]:
    # Before JAX starts, which has a thread for each core it may use.
    os.sched_setaffinity(0, {int(sys.argv[3])})
  flags.FLAGS.mark_as_parsed()
  workdir = Path(sys.argv[2])
  load = store.remembering()
  with os.fdopen(int(sys.argv[1]), "w", buffering=1) as replies:
    for line in sys.stdin:
      row = run(json.loads(line), workdir, load)
      print(json.dumps(row), file=replies)


if __name__ == "__main__":
  main()

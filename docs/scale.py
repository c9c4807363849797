"""The whole method on a bank of 10^8 samples: seconds, memory, and kills.

  python docs/scale.py --workdir=DIR --rows=100000000

Writes a synthetic bank of [rows, 64] float16 with the package's own writer and
runs `python -m ecos_jax.train` on it twice: once undisturbed, to take the
seconds and the peak memory of each stage, and once killed (SIGKILL) a third of
the way through each stage and started again. Both must choose the same samples.
Prints the table of docs/scaling.md. 10^8 rows take 14 GB of disk, which
`--delete` gives back at the end.
"""

import contextlib
import json
from pathlib import Path
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from absl import app
from absl import flags
import jax.numpy as jnp
import numpy as np

from ecos_jax.cloud import encode
from ecos_jax.encoders import registry

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder.", required=True)
_ROWS = flags.DEFINE_integer("rows", 10**6, "Rows of the bank.")
_CENTROIDS = flags.DEFINE_integer("centroids", 1000, "R.")
_BUDGET = flags.DEFINE_integer("budget", 10**5, "Samples to choose.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "Processes of the main job.")
_DELETE = flags.DEFINE_bool("delete", False, "Delete the bank at the end.")
_WRITE = flags.DEFINE_bool("write", False, "Only write the bank (a child).")

_SIDE = 8  # pixels; an image's features are its grey values
_SHARD_ROWS = 1 << 18
_CLIENT_ROWS = 20_000
_STAGES = ("write", "pool", "bank", "codebook", "query", "response", "proxy")
_POLL_SECONDS = 0.05
# What is shorter is not killed.
_SHORT_SECONDS = 0.3


class _Blobs:
  """A pool of random images around 1,000 centres of unequal frequency."""

  digest = "blobs"

  def __len__(self) -> int:
    return _ROWS.value

  def images(self, indices: np.ndarray, size: int) -> np.ndarray:
    """Returns images [n, 8, 8, 3] uint8, a function of the first index."""
    centres = np.random.default_rng(0).integers(0, 192, (1000, size, size))
    random = np.random.default_rng([1, indices[0]])
    which = (1000 * random.random(len(indices)) ** 2).astype(int)
    noise = random.integers(0, 64, (len(indices), size, size), np.uint8)
    grey = centres.astype(np.uint8)[which] + noise
    return np.repeat(grey[..., None], 3, axis=3)


def _grey(images):
  return images.astype(jnp.float32).mean(3).reshape(len(images), -1) / 255


_ENCODER = registry.Encoder("grey", _SIDE, _SIDE**2, {}, "grey", _grey)


def _write() -> None:
  encode.build(
    Path(_WORKDIR.value, "bank"),
    _Blobs(),
    _ENCODER,
    shard_rows=_SHARD_ROWS,
    batch_size=1 << 14,
  )
  print("write", flush=True)


class _Stage(NamedTuple):
  """What a stage took: seconds, and peak memory in bytes."""

  seconds: float
  peak: int


def _peak(process: subprocess.Popen) -> int:
  """Returns the peak memory in bytes; 0 once the process has ended."""
  with contextlib.suppress(OSError):
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
      if line.startswith("VmHWM"):
        return int(line.split()[1]) << 10
  return 0


def _lines(stream) -> queue.SimpleQueue:
  """Returns a queue that gets the lines of a stream, then None."""
  lines = queue.SimpleQueue()

  def read():
    for line in stream:
      lines.put(line)
    lines.put(None)

  threading.Thread(target=read, daemon=True).start()
  return lines


def _run(
  commands: list[list[str]], kill: tuple[str, float] | None = None
) -> dict[str, _Stage]:
  """Runs processes together and returns what each finished stage took.

  The peak is the largest of the processes'.

  Args:
    commands: One for each process; the first prints a line for each stage.
    kill: A stage, and the seconds from its start to the SIGKILL of all; at its
      end if it takes less.
  """
  with Path(_WORKDIR.value, "stderr.txt").open("a") as log:
    processes = [
      subprocess.Popen(
        command, stdout=log if i else subprocess.PIPE, stderr=log, text=True
      )
      for i, command in enumerate(commands)
    ]
  lines = _lines(processes[0].stdout)
  stages: dict[str, _Stage] = {}
  running = "write" if "--write" in commands[0] else "pool"
  begin, peak, line = time.monotonic(), 0, ""
  while line is not None:
    peak = max(peak, *map(_peak, processes), 0)
    now = time.monotonic()
    if kill and (
      kill[0] in stages or (running == kill[0] and now - begin >= kill[1])
    ):
      for process in processes:
        process.kill()
      kill = None
    try:
      line = lines.get(timeout=_POLL_SECONDS)
    except queue.Empty:
      continue
    if line and line.split()[:1] == [running]:
      now = time.monotonic()
      stages[running] = _Stage(now - begin, peak)
      running = (*_STAGES, "")[_STAGES.index(running) + 1]
      begin, peak = now, 0
      for process in processes:
        # The kernel forgets the peak so far.
        with contextlib.suppress(OSError):
          Path(f"/proc/{process.pid}/clear_refs").write_text("5")
  codes = [process.wait() for process in processes]
  if set(codes) > {0} or not set(codes) <= {0, -signal.SIGKILL}:
    raise SystemExit(f"exit codes {codes}: see {log.name}")
  return stages


def _main_job(workdir: Path) -> list[list[str]]:
  """Returns the command of each process of the main job."""
  folder = Path(_WORKDIR.value)
  command = [
    *(sys.executable, "-m", "ecos_jax.train"),
    "--config=configs/own.py:features",
    f"--workdir={workdir}",
    f"--config.data.sources=features:{folder / 'bank'}",
    f"--config.data.client_data=features:{folder / 'private.npy'}",
    f"--config.codebook.size={_CENTROIDS.value}",
    f"--config.sampling.budget={_BUDGET.value}",
    # Both runs must get the same answer.
    "--config.privacy.insecure_noise_seed=1",
  ]
  if _PROCESSES.value == 1:
    return [command]
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  command += [
    f"--coordinator=localhost:{port}",
    f"--num_processes={_PROCESSES.value}",
  ]
  return [
    [*command, f"--process_id={process}"] for process in range(_PROCESSES.value)
  ]


def _bare_bytes() -> int:
  """Returns the peak memory of a process that only imports and starts JAX."""
  code = (
    "import jax, ecos_jax.pipeline; jax.devices(); "
    "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
  )
  found = subprocess.run(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True
  )
  return int(found.stdout) << 10


def _digest(workdir: Path) -> str:
  return json.loads((workdir / "summary.json").read_text())["proxy_digest"]


def main(argv: list[str]) -> None:
  """Writes the bank, runs both jobs, prints the table."""
  folder = Path(_WORKDIR.value)
  if _WRITE.value:
    _write()
    return
  folder.mkdir(parents=True, exist_ok=True)
  # The client has what is darkest in one pixel.
  images = _Blobs().images(np.arange(20 * _CLIENT_ROWS), _SIDE)
  darkest = np.argsort(images[:, 0, 0, 0], kind="stable")[:_CLIENT_ROWS]
  np.save(folder / "private.npy", np.asarray(_grey(images[darkest])))
  bare = _bare_bytes()
  write = [
    *(sys.executable, argv[0], "--write"),
    *(f"--workdir={folder}", f"--rows={_ROWS.value}"),
  ]
  plain = _run([write])
  plain |= _run(_main_job(folder / "once"))
  shutil.rmtree(folder / "bank")
  kills = {
    stage: plain[stage].seconds / 3
    for stage in _STAGES
    if plain[stage].seconds > _SHORT_SECONDS
  }
  _run([write], ("write", kills["write"]))
  resumed = _run([write])
  previous = None
  for stage in [*kills, None][1:]:
    kill = None if stage is None else (stage, kills[stage])
    finished = _run(_main_job(folder / "killed"), kill)
    if previous is not None:
      resumed[previous] = finished[previous]
    previous = stage
  print(
    f"{_ROWS.value:,} x {_SIDE**2} float16, R = {_CENTROIDS.value}, "
    f"{_BUDGET.value:,} samples chosen, {_PROCESSES.value} processes; a bare "
    f"process has {bare >> 20} MiB\n\n"
    "| stage | seconds | peak memory over the bare process | killed after "
    "| then finished in |\n|---|---|---|---|---|"
  )
  for stage in _STAGES:
    seconds, peak = plain[stage]
    killed = again = "-"
    if stage in kills:
      killed = f"{kills[stage]:.1f} s"
      again = f"{resumed[stage].seconds:.1f} s"
    above = max(peak - bare, 0) >> 20
    print(f"| {stage} | {seconds:.1f} | {above} MiB | {killed} | {again} |")
  same = _digest(folder / "once") == _digest(folder / "killed")
  print(f"\nThe samples are {'the same' if same else 'NOT THE SAME'}.")
  if _DELETE.value:
    shutil.rmtree(folder)


if __name__ == "__main__":
  app.run(main)

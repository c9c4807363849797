"""Several processes that run one job: start, mesh, decisions, stopping.

Each process runs the same program. Arrays cross between processes inside jitted
code, over the mesh. Decisions (what to skip, when to stop) are those of process
0, and all processes must ask for them in the same order:

* `first` runs a function on process 0 and returns its value everywhere.
* `barrier` returns when every process has called it.

Both wait as long as another process is busy, which a collective operation on
the devices would not.

What JAX does: `jax.distributed` connects the processes, and its coordination
service keeps the keys and values through which they share decisions. This
module takes them from `jax._src`: up to JAX 0.12, `jax.distributed` has only
`initialize`, `is_initialized` and `shutdown`, and what
`jax.experimental.multihost_utils` broadcasts waits for the devices. JAX also
ends all processes when one is lost, but by an abort with a stack trace, and it
tells the others nothing of an exit code or a reason (docs/processes.md has
figures). Hence, beside that, each process here

* writes a sign of life every half second, and looks for those of the others;
* tells the others when it leaves, and they leave with the same exit code.

If process 0 is lost, which keeps the keys, JAX may be first: then the others
end with its message and exit code (134).

SIGTERM to one process ends all of them at once, whatever they are doing: every
stage survives a kill. Only what runs in `saving` gets time: it asks
`told_to_stop`, saves, and raises `PreemptedError`.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn, TypeVar

from absl import flags
import jax
from jax._src import distributed as jax_distributed  # keys and values
import numpy as np

from ecos_jax import errors

T = TypeVar("T")

EXIT_ERROR = 1
# EX_TEMPFAIL of sysexits.h: try again.
EXIT_PREEMPTED = 75
PREEMPTED = "stopped on SIGTERM: the same command goes on from here"
# Clouds take a machine away 30 seconds after SIGTERM.
_SAVE_SECONDS = 25
_WATCH_SECONDS = 0.5
_WAIT_MILLISECONDS = 1000
_FLAGS = "num_processes", "process_id"
_ADVICE = "start all of them again: they go on from here"
# XLA's errors when the process at the other end of a connection is gone.
_BROKEN = "Gloo|NCCL|coordination.service|Socket closed|Connection re"

_told_to_stop = threading.Event()
_saving = threading.Lock()
_ended = threading.Event()
_leaving = threading.Lock()
_count = itertools.count()
_watcher = threading.Thread()


def mesh() -> jax.sharding.Mesh:
  """Returns the mesh of all devices of all processes, with one axis 'data'.

  Devices are in the order of their processes: each process holds contiguous
  rows of an array that is sharded over the axis.
  """
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  return jax.sharding.Mesh(
    np.array(devices), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )


def define_flags() -> None:
  """Defines the flags that `start` reads."""
  flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, for several processes; `auto` where JAX finds it "
    "out (SLURM, Open MPI, TPU pods, Kubernetes). By default one process.",
  )
  flags.DEFINE_integer(
    "num_processes", None, "How many processes run this command together."
  )
  flags.DEFINE_integer(
    "process_id", None, "Which of them this is: 0 to num_processes - 1."
  )
  flags.DEFINE_integer(
    "initialization_timeout",
    300,
    "Seconds to wait for the other processes at the start.",
    lower_bound=1,
  )
  flags.DEFINE_integer(
    "heartbeat_timeout",
    100,
    "Seconds after which a process that gives no sign of life counts as lost.",
    lower_bound=5,
  )


def start() -> None:
  """Joins the other processes that the flags name, and prints who this is.

  From here on SIGTERM ends the command with `EXIT_PREEMPTED`, and only process
  0 prints to stdout. All processes print errors.

  Raises:
    ConfigError: The flags do not fit together, or JAX finds no cluster.
  """
  # Python's handlers wait for compilers and collective operations to return,
  # but the number of a signal is written to this descriptor at once.
  told, tells = os.pipe()
  os.set_blocking(tells, False)
  signal.set_wakeup_fd(tells)
  signal.signal(signal.SIGTERM, lambda signum, frame: None)
  threading.Thread(target=_obey, args=(told,), daemon=True).start()
  values = flags.FLAGS
  coordinator = values.coordinator
  if coordinator is None:
    for name in _FLAGS:
      if values[name].value is not None:
        raise errors.ConfigError(
          f"--{name} is for several processes: give --coordinator too"
        )
    return
  _initialize(coordinator, values)
  global _watcher
  _watcher = threading.Thread(
    target=_watch, args=(values.heartbeat_timeout,), daemon=True
  )
  _watcher.start()
  kind = jax.local_devices()[0].device_kind
  print(
    f"process {jax.process_index()} of {jax.process_count()} on "
    f"{socket.gethostname()}: {jax.local_device_count()} of "
    f"{jax.device_count()} devices ({kind}), coordinator "
    f"{jax_distributed.global_state.coordinator_address}",
    flush=True,
  )
  if jax.process_index() > 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _initialize(coordinator: str, values: flags.FlagValues) -> None:
  given: dict[str, Any] = {}
  if coordinator != "auto":
    missing = [f"--{name}" for name in _FLAGS if values[name].value is None]
    if missing:
      raise errors.ConfigError(
        f"--coordinator={coordinator} needs {' and '.join(missing)} as well"
      )
    if not re.fullmatch(r".+:\d+", coordinator):
      raise errors.ConfigError(
        f"--coordinator={coordinator} must be HOST:PORT, or auto"
      )
    if not 0 <= values.process_id < values.num_processes:
      raise errors.ConfigError(
        f"--process_id={values.process_id} must lie in 0.."
        f"{values.num_processes - 1}: --num_processes={values.num_processes}"
      )
    given = {
      "coordinator_address": coordinator,
      "num_processes": values.num_processes,
      "process_id": values.process_id,
      # All is given: do not look for a cluster.
      "cluster_detection_method": "deactivate",
    }
  # This module handles SIGTERM, also outside of training.
  jax.config.update("jax_enable_preemption_service", False)
  # JAX would abort with a stack trace when its own timeout ends: be earlier.
  late = threading.Timer(
    values.initialization_timeout,
    _exit,
    (
      EXIT_ERROR,
      f"error: --coordinator={coordinator}: not all processes came in "
      f"--initialization_timeout={values.initialization_timeout} seconds",
    ),
  )
  late.start()
  try:
    jax.distributed.initialize(
      **given,
      initialization_timeout=2 * values.initialization_timeout,
      heartbeat_timeout_seconds=2 * values.heartbeat_timeout,
      shutdown_timeout_seconds=values.heartbeat_timeout,
    )
    jax.devices()
  except (RuntimeError, ValueError) as error:
    raise errors.ConfigError(
      f"--coordinator={coordinator}: JAX cannot start: {error}"
    ) from error
  finally:
    late.cancel()


def _client() -> Any:
  return jax_distributed.global_state.client


def started() -> bool:
  """Returns whether this process has joined others."""
  return _client() is not None


def _get(key: str) -> str:
  """Waits until a key has a value, and returns it."""
  while True:
    try:
      # In slices: Python handles signals in between.
      return _client().blocking_key_value_get(key, _WAIT_MILLISECONDS)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


def first(work: Callable[[], T]) -> T:
  """Calls `work` on process 0 only, and returns its value on all processes.

  Args:
    work: Returns a value that JSON can hold.
  """
  if jax.process_count() == 1:
    return work()
  key = f"ecos/value/{next(_count)}"
  if jax.process_index() == 0:
    _client().key_value_set(key, json.dumps(work()))
  return json.loads(_get(key))


def barrier() -> None:
  """Returns when every process has called it."""
  if jax.process_count() == 1:
    return
  key = f"ecos/barrier/{next(_count)}/"
  _client().key_value_set(f"{key}{jax.process_index()}", "")
  for process in range(jax.process_count()):
    _get(f"{key}{process}")


def told_to_stop() -> bool:
  """Returns whether SIGTERM came, to this process or to another."""
  return _told_to_stop.is_set()


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Gives the block time to save its work after SIGTERM."""
  with _saving:
    yield


def _obey(told: int) -> None:
  """Ends this process when SIGTERM comes."""
  while signal.SIGTERM not in os.read(told, 1):
    pass
  _told_to_stop.set()
  _saving.acquire(timeout=_SAVE_SECONDS)
  _leave_all(EXIT_PREEMPTED, PREEMPTED)


def _watch(timeout: float) -> None:
  """Tells the others that this process lives; acts on what they tell."""
  client, me = _client(), jax.process_index()
  beats, heard = {}, {}

  def lost(process: str) -> str:
    return (
      f"error: process {process} gave no sign of life for "
      f"--heartbeat_timeout={timeout:g} seconds; {_ADVICE}"
    )

  for beat in itertools.count():
    if _ended.wait(_WATCH_SECONDS):
      return
    # If process 0 is frozen, what asks for its keys does not return.
    late = threading.Timer(timeout, _exit, (EXIT_ERROR, lost("0")))
    late.start()
    _follow()
    with _process_0_needed():
      client.key_value_set(f"ecos/alive/{me}", str(beat), allow_overwrite=True)
      if told_to_stop():
        client.key_value_set(f"ecos/stop/{me}", "", allow_overwrite=True)
      elif client.key_value_dir_get("ecos/stop"):
        signal.raise_signal(signal.SIGTERM)
      alive = client.key_value_dir_get("ecos/alive")
    late.cancel()
    now = time.monotonic()
    for process, value in alive:
      if beats.get(process) != value:
        beats[process], heard[process] = value, now
      elif now - heard[process] > timeout:
        leave(EXIT_ERROR, lost(process.rpartition("/")[2]))


@contextlib.contextmanager
def _process_0_needed():
  """Ends this process if process 0, which keeps the keys, is gone."""
  try:
    yield
  except jax.errors.JaxRuntimeError:
    _exit(EXIT_ERROR, f"error: process 0 was lost; {_ADVICE}")


def _follow() -> None:
  """Ends this process if another one told that it leaves."""
  with _process_0_needed():
    left = _client().key_value_dir_get("ecos/left")
  for _, what in left:
    _exit(**json.loads(what))


def _exit(code: int, text: str) -> NoReturn:
  # Never released: only one thread says why this process ends.
  _leaving.acquire()
  # The reader of stderr may be gone.
  with contextlib.suppress(OSError):
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
  if jax_distributed.global_state.service is not None:
    # Process 0 keeps the keys that the others have yet to read.
    time.sleep(4 * _WATCH_SECONDS)
  # Not sys.exit: JAX would wait for the others.
  os._exit(code)


def leave(code: int, text: str) -> NoReturn:
  """Ends this process and the others, with one line on stderr.

  Args:
    code: Exit code of all.
    text: The line.
  """
  if _client() is None:
    print(text, file=sys.stderr)
    sys.exit(code)
  _leave_all(code, text)


def _leave_all(code: int, text: str) -> NoReturn:
  """Does what `leave` does, from any thread."""
  me, client = jax_distributed.global_state.process_id, _client()
  where = f"process {me} on {socket.gethostname()}"
  what = json.dumps({"code": code, "text": f"{text} ({where})"})
  # Process 0 may be gone. Before all are there, a client that is not connected
  # would abort.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    if client is not None and _watcher.is_alive():
      client.key_value_set(f"ecos/left/{me}", what)
  _exit(code, text)


def fail(error: Exception) -> NoReturn:
  """Ends all processes after an error that is no `EcosError`.

  Raises:
    Exception: The error itself, if there is only one process.
  """
  if _client() is None:
    raise error
  reason = " ".join(str(error).split())
  if not re.search(_BROKEN, reason):
    traceback.print_exception(error)
    leave(EXIT_ERROR, f"error: {type(error).__name__}: {reason}")
  # The process that is gone may have told why, or be about to.
  for _ in range(4):
    _follow()
    time.sleep(_WATCH_SECONDS)
  leave(EXIT_ERROR, f"error: another process was lost ({reason}); {_ADVICE}")


def finish() -> None:
  """Disconnects from the other processes when all have called it."""
  if _client() is None:
    return
  barrier()
  _ended.set()
  _watcher.join()
  jax.distributed.shutdown()

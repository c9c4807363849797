"""Several processes as one: start, mesh, shared decisions, and stopping.

Each process runs the same program. Numbers cross between them inside jitted
code, over the mesh. Decisions (what is done, what to skip, when to stop) are
those of process 0, shared through the coordination service of
`jax.distributed`, which works however long a process is busy elsewhere:

* `first` runs a function on process 0 and hands its value to all.
* `barrier` returns when every process has called it.

They must be called in the same order everywhere; with one process they cost
nothing. A process that leaves early tells the others, which leave with the same
exit code. One that was killed is missed where a collective operation breaks, or
else after the heartbeat timeout. If it was process 0, jax may end the others
with a message and an exit code (134) of its own.

SIGTERM ends all processes at once, whatever they are doing, since every stage
survives a kill. Only what runs in `saving` is given time: it asks
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
from jax._src import distributed as jax_distributed  # the key-value store
import numpy as np

from ecos_jax import errors

T = TypeVar("T")

EXIT_ERROR = 1
# EX_TEMPFAIL of sysexits.h: try again.
EXIT_PREEMPTED = 75
PREEMPTED = "stopped on SIGTERM: the same command goes on from here"
# Machines are taken away 30 seconds after SIGTERM.
_SAVE_SECONDS = 25
_WATCH_SECONDS = 0.5
_WAIT_MILLISECONDS = 1000
_FLAGS = "num_processes", "process_id"
_ADVICE = "start all of them again: they go on from here"
# What XLA says when the process at the other end of a connection is gone.
_BROKEN = "Gloo|NCCL|coordination.service|Socket closed|Connection re"

_told_to_stop = threading.Event()
_saving = threading.Lock()
_ended = threading.Event()
_leaving = threading.Lock()
_count = itertools.count()
_watcher = threading.Thread()


def mesh() -> jax.sharding.Mesh:
  """Returns the mesh of all devices of all processes, one axis named 'data'.

  In order of processes, so that a process holds contiguous rows of an array
  that is sharded over it.
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
    "HOST:PORT of process 0, for several processes; `auto` where jax finds out "
    "by itself (SLURM, Open MPI, TPU pods, Kubernetes). Without it: one "
    "process.",
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
    "Seconds without a sign of life after which a process counts as lost.",
    lower_bound=5,
  )


def start() -> None:
  """Joins the other processes that the flags name; says who is there.

  After that line only process 0 prints to stdout; errors are told by all.
  From here on SIGTERM ends the command with `EXIT_PREEMPTED`.

  Raises:
    ConfigError: The flags do not fit together, or jax finds no cluster.
  """
  # A handler in Python waits for compilers and collective operations to return;
  # the number of a signal is written to this descriptor at once.
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
      # Do not look for a cluster where all is said.
      "cluster_detection_method": "deactivate",
    }
  # SIGTERM is noticed here, also while nothing trains.
  jax.config.update("jax_enable_preemption_service", False)
  # Where jax runs out of time it aborts with a stack trace: be first.
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
      f"--coordinator={coordinator}: jax cannot start: {error}"
    ) from error
  finally:
    late.cancel()


def _client() -> Any:
  return jax_distributed.global_state.client


def _get(key: str) -> str:
  """Returns the value of a key once it is there."""
  while True:
    try:
      # In slices, since Python handles signals in between.
      return _client().blocking_key_value_get(key, _WAIT_MILLISECONDS)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


def first(work: Callable[[], T]) -> T:
  """Returns what `work` returns on process 0, the only one to call it.

  Args:
    work: Returns JSON.
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
  """Returns whether this process knows of a SIGTERM, to it or to another."""
  return _told_to_stop.is_set()


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Gives what runs inside time to save its work, once it is told to stop."""
  with _saving:
    yield


def _obey(told: int) -> None:
  """Ends this process once SIGTERM came."""
  while signal.SIGTERM not in os.read(told, 1):
    pass
  _told_to_stop.set()
  _saving.acquire(timeout=_SAVE_SECONDS)
  _leave_all(EXIT_PREEMPTED, PREEMPTED)


def _watch(timeout: float) -> None:
  """Tells the others that this process lives, and acts on what they tell."""
  client, me = _client(), jax.process_index()
  beats, heard = {}, {}
  for beat in itertools.count():
    if _ended.wait(_WATCH_SECONDS):
      return
    _follow()
    with _process_0_needed():
      client.key_value_set(f"ecos/alive/{me}", str(beat), allow_overwrite=True)
      if told_to_stop():
        client.key_value_set(f"ecos/stop/{me}", "", allow_overwrite=True)
      elif client.key_value_dir_get("ecos/stop"):
        signal.raise_signal(signal.SIGTERM)
      alive = client.key_value_dir_get("ecos/alive")
    now = time.monotonic()
    for process, value in alive:
      if beats.get(process) != value:
        beats[process], heard[process] = value, now
      elif now - heard[process] > timeout:
        leave(
          EXIT_ERROR,
          f"error: process {process.rpartition('/')[2]} gave no sign of life "
          f"for --heartbeat_timeout={timeout:g} seconds; {_ADVICE}",
        )


@contextlib.contextmanager
def _process_0_needed():
  """Ends this process if process 0, which holds the messages, is gone."""
  try:
    yield
  except jax.errors.JaxRuntimeError:
    _exit(EXIT_ERROR, f"error: process 0 was lost; {_ADVICE}")


def _follow() -> None:
  """Ends this process if another one has told that it left."""
  with _process_0_needed():
    left = _client().key_value_dir_get("ecos/left")
  for _, what in left:
    _exit(**json.loads(what))


def _exit(code: int, text: str) -> NoReturn:
  # Never released: one thread gets to tell why.
  _leaving.acquire()
  # Who reads may be gone.
  with contextlib.suppress(OSError):
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
  if jax_distributed.global_state.service is not None:
    # Process 0 holds what the others have yet to read.
    time.sleep(4 * _WATCH_SECONDS)
  # Not sys.exit: jax would wait for the others.
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
  """As `leave`, at once and from any thread."""
  me, client = jax_distributed.global_state.process_id, _client()
  where = f"process {me} on {socket.gethostname()}"
  what = json.dumps({"code": code, "text": f"{text} ({where})"})
  # Process 0, which passes it on, may be gone; before all are there, a client
  # that is not connected would abort.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    if client is not None and _watcher.is_alive():
      client.key_value_set(f"ecos/left/{me}", what)
  _exit(code, text)


def fail(error: Exception) -> NoReturn:
  """Ends all processes on an error that is no `EcosError`.

  Raises:
    Exception: The error itself, if there is but one process.
  """
  if _client() is None:
    raise error
  reason = " ".join(str(error).split())
  if not re.search(_BROKEN, reason):
    traceback.print_exception(error)
    leave(EXIT_ERROR, f"error: {type(error).__name__}: {reason}")
  # The other one may have told why it left, or be about to.
  for _ in range(4):
    _follow()
    time.sleep(_WATCH_SECONDS)
  leave(EXIT_ERROR, f"error: another process was lost ({reason}); {_ADVICE}")


def finish() -> None:
  """Leaves the other processes once all have called it."""
  if _client() is None:
    return
  barrier()
  _ended.set()
  _watcher.join()
  jax.distributed.shutdown()

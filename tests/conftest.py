"""What all tests share: compiled programs, and commands without imports."""

from collections.abc import Callable
import contextlib
import functools
import gc
import itertools
import os
from pathlib import Path
import shlex
import subprocess
import sys
import time

import pytest

from tests import forked

_ROOT = Path(__file__).parents[1]
# Workers, the processes that they start and later runs share what is compiled:
# half of what the tests cost without. A file that is cut off is compiled again.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
_COMPILED = _CACHE / "ecos_jax" / "tests"
_KEPT_SECONDS = 30 * 86400
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_sessionstart(session):
  if not hasattr(session.config, "workerinput"):  # not in each worker
    for file in _COMPILED.glob("*-cache"):
      if time.time() - file.stat().st_mtime > _KEPT_SECONDS:
        file.unlink(missing_ok=True)


def pytest_collection_finish(session):
  del session
  # What is imported stays: the garbage collector need not look at it again.
  gc.freeze()


class _Job:
  """A command in a process of its own."""

  def __init__(
    self,
    server,
    files,
    flags,
    module="ecos_jax.train",
    patched=None,
    devices=1,
    **environment,
  ):
    self._files = files
    environment["XLA_FLAGS"] = (
      f"--xla_force_host_platform_device_count={devices}"
    )
    job = {
      "module": module,
      "flags": list(map(str, flags)),
      "patched": patched,
      "environment": environment,
      "folder": str(_ROOT),
    }
    with (
      Path(os.devnull).open("rb") as nothing,
      files[0].open("wb") as out,
      files[1].open("wb") as err,
    ):
      streams = [file.fileno() for file in (nothing, out, err)]
      self.pid, self._lines = forked.start(server, streams, job)

  @property
  def out(self) -> str:
    return self._files[0].read_text()

  @property
  def err(self) -> str:
    return self._files[1].read_text()

  def wait_until(self, found: Callable[[], bool]) -> None:
    """Returns once something is found, such as a file."""
    deadline = time.monotonic() + 240
    while not found():
      assert time.monotonic() < deadline, self.out + self.err
      time.sleep(0.002)

  def wait_for(self, stage: str) -> None:
    """Returns once the stage is done."""
    self.wait_until(lambda: f"\n{stage} " in f"\n{self.out}")

  def signal(self, number: int) -> None:
    # It may have ended.
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, number)

  def wait(self) -> int:
    """Returns the exit code."""
    with self._lines:
      return int(self._lines.readline())


@pytest.fixture(scope="session")
def _forks(tmp_path_factory):
  """Returns the socket of a process that runs commands in forks of itself."""
  path = tmp_path_factory.mktemp("forks") / "socket"
  with subprocess.Popen(
    [sys.executable, str(Path(__file__).with_name("forks.py")), str(path)],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu"},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    # Not to a file: the buffers of the forks would rely on a place in it.
    stderr=subprocess.STDOUT,
    text=True,
  ) as server:
    said = server.stdout.readline()
    assert said == "ready\n", said + server.stdout.read()
    yield str(path)
    server.stdin.close()


@pytest.fixture(scope="session")
def start_job(_forks, tmp_path_factory):
  """Starts a command with some flags, at a fraction of the usual cost."""
  folder, count = tmp_path_factory.mktemp("jobs"), itertools.count()

  def start(*flags, **options):
    number = next(count)
    files = folder / f"{number}.out", folder / f"{number}.err"
    return _Job(_forks, files, flags, **options)

  return start


@pytest.fixture(scope="session")
def python(_forks):
  """Returns shell words that stand for `python`, and cost a fraction of it."""
  program = Path(__file__).with_name("forked.py")
  return shlex.join([sys.executable, "-IS", str(program), _forks])


@pytest.fixture(scope="session")
def job_flags():
  """Returns the flags of a small run of a task in some folder."""
  return lambda task, path: (
    f"--config=configs/digits_{task}.py:smoke",
    f"--workdir={path}",
    "--config.bank.shard_rows=200",
    "--config.privacy.insecure_noise_seed=3",
    # With its two messages more.
    "--config.labelling.by=knn",
  )


@pytest.fixture(scope="session")
def finished_job(start_job, job_flags, tmp_path_factory):
  """Returns the folder of that run, which nothing disturbed."""
  root = tmp_path_factory.mktemp("finished")

  @functools.cache
  def run(task):
    job = start_job(*job_flags(task, root / task))
    assert job.wait() == 0, job.err
    return root / task

  return run

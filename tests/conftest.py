"""What all tests share: compiled programs, and commands without imports."""

from collections.abc import Callable
import contextlib
import functools
import gc
import itertools
import json
import os
from pathlib import Path
import subprocess
import sys
import time

import pytest

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
    self._server, self._files = server, files
    for file in files:
      file.write_text("")
    out, err = map(str, files)
    environment["XLA_FLAGS"] = (
      f"--xla_force_host_platform_device_count={devices}"
    )
    self.pid = self._order(
      module=module,
      flags=list(map(str, flags)),
      out=out,
      err=err,
      patched=patched,
      environment=environment,
    )

  def _order(self, **order):
    self._server.stdin.write(json.dumps(order) + "\n")
    self._server.stdin.flush()
    return int(self._server.stdout.readline())

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
    return self._order(wait=self.pid)


@pytest.fixture(scope="session")
def start_job(tmp_path_factory):
  """Starts a command with some flags, at a fraction of the usual cost."""
  folder = tmp_path_factory.mktemp("jobs")
  root, count = Path(__file__).parents[1], itertools.count()
  with subprocess.Popen(
    [sys.executable, str(Path(__file__).with_name("forks.py"))],
    cwd=root,
    env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as server:

    def start(*flags, **options):
      number = next(count)
      files = folder / f"{number}.out", folder / f"{number}.err"
      return _Job(server, files, flags, **options)

    yield start
    server.stdin.close()


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

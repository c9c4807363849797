"""The machine: what it is, its peak, and how much memory a process takes."""

from collections.abc import Iterable, Mapping
import contextlib
import importlib.metadata
import os
from pathlib import Path
import platform
import sys
import time

# Variables that choose the kernels of a BLAS: they may slow numpy down.
_BLAS_OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_PEAK_SIZE = 2048


def cores() -> int:
  """Returns how many cores this process may use."""
  if sys.platform == "linux":
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def threads(count: int) -> dict[str, str]:
  """Returns the variables that limit the threads of numerical libraries."""
  libraries = ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
  return {f"{library}_NUM_THREADS": str(count) for library in libraries}


def environment(base: Mapping[str, str]) -> dict[str, str]:
  """Returns `base`, changed for a child: all cores, the BLAS's own kernels.

  On CPU, JAX gets a virtual device for each core.
  """
  kept = {k: v for k, v in base.items() if k not in _BLAS_OVERRIDES}
  flag = f"--xla_force_host_platform_device_count={cores()}"
  return kept | {
    **threads(cores()),
    "XLA_FLAGS": f"{base.get('XLA_FLAGS', '')} {flag}".strip(),
    # Several children share an accelerator.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
  }


def versions(packages: Iterable[str]) -> dict[str, str]:
  """Returns the versions of Python and of the packages that are installed."""
  found = {"python": platform.python_version()}
  for name in packages:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def processor() -> str:
  """Returns the name of the processor."""
  if sys.platform == "linux":
    for line in Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def describe(peak_seconds: float) -> dict:
  """Returns a description of the machine; starts JAX.

  `gemm_gflops` is the best rate of a square float32 product.

  Args:
    peak_seconds: How long to measure that.
  """
  import jax
  import jax.numpy as jnp

  devices = jax.devices()
  product = jax.jit(
    lambda a, b: jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
  )
  square = jnp.ones((_PEAK_SIZE, _PEAK_SIZE), jnp.float32)
  product(square, square).block_until_ready()
  best = float("inf")
  deadline = time.perf_counter() + peak_seconds
  while time.perf_counter() < deadline:
    begin = time.perf_counter()
    product(square, square).block_until_ready()
    best = min(best, time.perf_counter() - begin)
  on_cpu = devices[0].platform == "cpu"
  chips = 1 if on_cpu else len(devices)  # Virtual devices share the cores.
  return {
    "platform": devices[0].platform,
    "kind": processor() if on_cpu else devices[0].device_kind,
    "devices": len(devices),
    "cores": cores(),
    "memory_bytes": memory_bytes(),
    "system": platform.platform(),
    "gemm_gflops": 2e-9 * _PEAK_SIZE**3 / best * chips,
  }


def backend(_: None = None) -> str:
  """Returns JAX's default platform, such as `cpu`; starts JAX."""
  import jax

  return jax.default_backend()


def memory_bytes() -> int:
  """Returns the memory of the machine."""
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
  """Returns the free memory; all of it where the system does not say."""
  return _told("/proc/meminfo", "MemAvailable") or memory_bytes()


def _told(path: str, field: str) -> int:
  """Returns the bytes in a field of Linux; 0 where there is none."""
  with contextlib.suppress(OSError):
    for line in Path(path).read_text().splitlines():
      if line.startswith(field):
        return int(line.split()[1]) << 10
  return 0


def resident_bytes() -> int:
  """Returns the resident memory of this process, and resets its peak."""
  # Sandboxes may not allow it; the peak is then that since the start.
  with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")
  return _told("/proc/self/status", "VmRSS")


def peak_resident_bytes() -> int:
  """Returns the highest resident memory since the last `resident_bytes`."""
  return _told("/proc/self/status", "VmHWM")

"""Compiled programs on disk, so that the next run does not compile them again.

JAX keeps them, but writes its files in place: one that a killed job left half
written would be complained about ever after, and never replaced. Here files
appear whole, and what is damaged all the same is compiled and written anew.
"""

import contextlib
import os
from pathlib import Path

from absl import flags
import jax
from jax._src import compilation_cache as jax_cache  # has no public interface
from jax._src import compilation_cache_interface

from ecos_jax import files

_DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
_MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


class _Cache(compilation_cache_interface.CacheInterface):
  """One file an executable, of JAX's names and content."""

  def __init__(self, folder: Path):
    self._path = folder

  def get(self, key: str) -> bytes | None:  # pyrefly: ignore[bad-override]
    """Returns an executable, None if it is not there or damaged."""
    # Each library for compression has errors of its own.
    with contextlib.suppress(Exception):
      data = (self._path / f"{key}-cache").read_bytes()
      jax_cache.decompress_executable(data)
      return data
    return None

  def put(self, key: str, value: bytes) -> None:
    """Keeps an executable, if the disk takes it."""
    with (
      contextlib.suppress(OSError),
      files.replacing(self._path / f"{key}-cache") as temporary,
    ):
      temporary.write_bytes(value)


def define_flags() -> None:
  """Defines the flag that `start` reads."""
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  flags.DEFINE_string(
    "compilation_cache",
    os.environ.get(_DIRECTORY) or f"{home}/ecos_jax/jax",
    "Folder that keeps compiled programs for the next run, and can be deleted "
    f"at any time; empty: none. By default that of {_DIRECTORY}, if set.",
  )


def start() -> None:
  """Keeps compiled programs where the flag says, if that can be written to."""
  try:
    folder = Path(flags.FLAGS.compilation_cache).expanduser().absolute()
  except RuntimeError:  # who has no home
    folder = None
  if folder is None or not flags.FLAGS.compilation_cache:
    jax.config.update("jax_enable_compilation_cache", False)
    return
  with contextlib.suppress(OSError):
    folder.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  if _MIN_SECONDS not in os.environ:
    # What compiles faster is not worth a file.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
  jax_cache._cache = _Cache(folder)

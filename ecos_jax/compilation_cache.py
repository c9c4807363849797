"""Compiled programs on disk, so that the next run does not compile them again.

JAX keeps them, one file a program. It writes a file in place, so a killed run
may leave one that is cut off. JAX would warn of it in every later run and never
replace it. Here each run first deletes the damaged files among the new ones.
"""

import contextlib
import os
from pathlib import Path
import zlib

import jax

from ecos_jax import files

try:
  from compression import zstd  # pyrefly: ignore[missing-import]
except ImportError:  # before Python 3.14
  try:
    import zstandard as zstd  # pyrefly: ignore[missing-import]
  except ImportError:
    zstd = None

_DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
_MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# The modification time of this file says up to when files were checked.
_CHECKED = "checked"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def _whole(file: Path) -> bool:
  """Returns whether a file can be decompressed."""
  data = file.read_bytes()
  try:
    if not data.startswith(_ZSTD_MAGIC):
      zlib.decompress(data)
    elif zstd is not None:
      zstd.decompress(data)
  # The errors of the libraries have no common class.
  except Exception:
    return False
  return True


def _delete_damaged(folder: Path) -> None:
  """Deletes the damaged files among those written since the last call.

  Raises:
    OSError: The folder cannot be written to.
  """
  checked = folder / _CHECKED
  since = checked.stat().st_mtime_ns if checked.exists() else 0
  with files.replacing(checked) as begun:
    # What another run writes during the check is newer than this.
    begun.touch()
    for file in folder.glob("*-cache"):
      # Another run may have deleted it.
      with contextlib.suppress(FileNotFoundError):
        if file.stat().st_mtime_ns >= since and not _whole(file):
          file.unlink()


def start() -> None:
  """Keeps compiled programs where `JAX_COMPILATION_CACHE_DIR` says.

  By default that is `ecos_jax/jax` in the user's cache folder. Where it cannot
  be written to, none are kept.
  """
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  place = os.environ.get(_DIRECTORY) or f"{home}/ecos_jax/jax"
  try:
    folder = Path(place).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _delete_damaged(folder)
  except (OSError, RuntimeError):  # RuntimeError: a user without a home
    jax.config.update("jax_enable_compilation_cache", False)
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  if _MIN_SECONDS not in os.environ:
    # What compiles faster is not worth a file.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

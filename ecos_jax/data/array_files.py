"""Reads .npy and .npz files; those of others are not trusted.

Nothing is unpickled, and an archive that would inflate to far more bytes than
it has is refused before it fills the memory.
"""

import contextlib
import lzma
import math
from pathlib import Path
import tokenize
from typing import IO, Any
import zipfile
import zlib

import numpy as np

from ecos_jax import errors
from ecos_jax.data import images

# What numpy raises if a file is missing, damaged, or no array file.
ERRORS = (
  *(OSError, ValueError, TypeError, EOFError, RuntimeError, ArithmeticError),
  *(SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
  lzma.LZMAError,
)
# Compressed arrays may take at most _MAX_RATIO times the bytes of their file;
# up to _INFLATED bytes are always allowed.
_MAX_RATIO = 100
_INFLATED = 2**28
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


def why(error: Exception, path: Path) -> str:
  """Returns why numpy cannot read a file.

  numpy's own text has the sizes of arrays, which are private.
  """
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  with contextlib.suppress(OSError), path.open("rb") as file:
    if file.read(len(images.LFS)) == images.LFS:
      return images.LFS_WHY
  return "it is damaged, or no file of arrays that numpy saved without pickle"


def header(stream: IO[bytes]) -> tuple[Any, bool, np.dtype]:
  """Returns shape, Fortran order and type of an .npy file; reads up to them.

  Raises:
    ValueError, and others of `ERRORS`: It is no such file.
  """
  read = _HEADERS.get(np.lib.format.read_magic(stream))
  if read is None:
    raise ValueError("unknown version")
  return read(stream)


def read(path: Path) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz file, or {'images': memory map} of an .npy.

  Args:
    path: The file.

  Raises:
    EcosError: It cannot be read.
  """
  try:
    if path.suffix == ".npy":
      return {"images": np.lib.format.open_memmap(path, mode="r")}
    with path.open("rb") as file:
      _check_sizes(file, path)
      with np.load(file) as arrays:
        return dict(arrays)
  except ERRORS as error:
    raise errors.EcosError(f"cannot read {path}: {why(error, path)}") from error


def _check_sizes(file: IO[bytes], path: Path) -> None:
  """Checks that the arrays of an .npz file are not far larger than the file.

  Raises:
    EcosError: They are, or an array has not the size that its header says.
    ValueError, OSError, BadZipFile: It is no such file.
  """
  with zipfile.ZipFile(file) as archive:
    # Together, and against the whole file: many small ones add up, and may
    # share their bytes.
    most = max(_INFLATED, _MAX_RATIO * path.stat().st_size)
    if sum(member.file_size for member in archive.infolist()) > most:
      raise errors.EcosError(
        f"cannot read {path}: it would inflate to more than {_MAX_RATIO} times "
        "its bytes: save it with numpy.savez"
      )
    for member in archive.infolist():
      with archive.open(member) as stream:
        shape, _, dtype = header(stream)
        size = stream.tell() + math.prod(shape) * dtype.itemsize
      # Object arrays are pickles, which numpy refuses.
      if size != member.file_size and not dtype.hasobject:
        raise errors.EcosError(
          f"cannot read {path}: {member.filename} has not the size that it says"
        )
  file.seek(0)

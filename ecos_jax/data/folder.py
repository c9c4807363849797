"""Images in a folder and its subfolders, by path.

A file that was changed in place is noticed when it is used.
"""

from collections.abc import Sequence
from concurrent import futures
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from ecos_jax import errors
from ecos_jax import files as files_lib
from ecos_jax.data import listing as listing_lib
from ecos_jax.data import records


class FolderSource(records.RecordSource):
  """Images in a folder and its subfolders, by path.

  The class of a file is named by its folder.

  Hidden files are left out, and so are links to folders, with a warning: they
  could form a cycle. Links to files are followed, with a warning if they lead
  out of the folder.

  Attributes:
    path: The folder.
  """

  def __init__(
    self,
    path: Path,
    classes: Sequence[str] | None = None,
    *,
    part: tuple[int, int] = (0, 100),
    listing: Path | None = None,
    **options: Any,
  ):
    """Lists the folder.

    Args:
      path: The folder.
      classes: As in `RecordSource`.
      part: The first and the last percent of the files to take, in the order of
        a hash of their names: no file changes the place of another.
      listing: File that keeps the listing; None: it is not kept.
      **options: As in `RecordSource`.

    Raises:
      EcosError: The path is no folder, or as in `RecordSource`.
    """
    if not path.is_dir():
      raise errors.EcosError(f"{path} is not a folder")
    self.path = path
    name = files_lib.printable(path.resolve().name)
    if part != (0, 100):
      name += f"[{part[0]}%:{part[1]}%]"
    found, others = listing_lib.listed(path, listing)
    kept = [
      records.Record(
        *(file.name, (), file.digest, -1),
        *(file.name.rpartition("/")[0], file.why),
      )
      for file in found
      if _within(file, part)
    ]
    super().__init__(
      name, kept, classes, place=str(path), others=others, **options
    )

  @property
  def names(self) -> list[str]:
    """Returns the paths of the files below the folder."""
    return self.keys(np.arange(len(self)))

  @property
  def persons(self) -> np.ndarray:
    """Returns for each file the folder of `path` that it lies in, [n] strings.

    Raises:
      EcosError: A file lies in none.
    """
    folders, slashes, _ = (
      np.array([name.partition("/") for name in self.names], np.str_)
      .reshape(-1, 3)
      .T
    )
    if not np.all(slashes == "/"):
      raise errors.EcosError(
        f"{self.path} must have a folder for each person, and all files in "
        "these folders: one lies beside them"
      )
    return folders

  def _read(self, indices: np.ndarray) -> list[bytes]:
    def read(name: str) -> bytes:
      try:
        return listing_lib.read(self.path, name)[0]
      except OSError as error:
        raise errors.EcosError(
          f"cannot read {self.path / name}: {error.strerror}"
        ) from error

    with futures.ThreadPoolExecutor(records.READERS) as pool:
      return list(pool.map(read, self.keys(indices)))


def _within(file: listing_lib.File, part: tuple[int, int]) -> bool:
  place = int.from_bytes(hashlib.sha256(os.fsencode(file.name)).digest()[:8])
  return part[0] << 64 <= 100 * place < part[1] << 64

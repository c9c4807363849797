"""Files by a pattern, on a local disk or in a bucket (fsspec)."""

from collections.abc import Iterator, Sequence
import itertools
import os
import re
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations import local

from ecos_jax import errors
from ecos_jax import files

_MAGIC = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_FILES = 1_000_000
# How to install what fsspec needs for a protocol.
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}


class File(NamedTuple):
  """A file on any file system.

  Attributes:
    fs: Its file system, of fsspec.
    path: Its path there.
    name: Its path below the last folder that the pattern names without a
      wildcard.
    size: In bytes.
    version: A text that changes with the file.
  """

  fs: Any
  path: str
  name: str
  size: int
  version: str

  @property
  def is_local(self) -> bool:
    """Returns whether it lies on a disk of this machine."""
    return isinstance(self.fs, local.LocalFileSystem)

  def read(self, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    """Returns some ranges of its bytes.

    Raises:
      OSError: They cannot be read.
    """
    paths = [self.path] * len(starts)
    return self.fs.cat_ranges(paths, list(starts), list(ends), on_error="raise")


class Found(NamedTuple):
  """The files of a pattern.

  Attributes:
    name: What to call them all.
    files: In natural order: `2.tar` comes before `10.tar`.
  """

  name: str
  files: list[File]


def find(
  pattern: str,
  suffixes: tuple[str, ...],
  depth: int | None = None,
  *,
  may_be_empty: bool = False,
) -> Found:
  """Returns the files that a pattern names.

  Args:
    pattern: A file, a folder, or files by `*`, `?`, `[a-z]`, `{a,b}` and
      `{000..099}`; a local path or a URL that fsspec knows.
    suffixes: Endings of the files to take from a folder; hidden files are left
      out.
    depth: How many levels of folders to look in; None: all.
    may_be_empty: Whether a folder may have no such file.

  Raises:
    EcosError: There is no such file, or the package for the URL is missing.
  """
  try:
    fs, path = fsspec.core.url_to_fs(pattern)
    infos, root = _infos(fs, path.rstrip("/"), suffixes, depth)
  except (ImportError, ValueError) as error:
    raise errors.EcosError(_how_to_install(pattern, error)) from error
  except OSError as error:
    raise errors.EcosError(f"cannot list {pattern}: {error}") from error
  if not infos and not may_be_empty:
    raise errors.EcosError(
      f"{pattern} names no file with the suffix {' or '.join(suffixes)}"
    )
  found = [
    File(
      fs,
      path,
      path[len(root) :],
      info["size"],
      # As fsspec's `ukey`, which would ask for each file again.
      files.digest(str(sorted(info.items())).encode()),
    )
    for path, info in infos.items()
  ]
  found.sort(key=lambda file: files.natural(file.name))
  name = root.rstrip("/").rpartition("/")[2]
  if len(found) == 1 and path == found[0].path:
    # It may lie at an address, which is no path of this machine.
    name = os.path.splitext(found[0].name)[0]  # noqa: PTH122
  return Found(files.printable(name), found)


def _infos(
  fs: Any, path: str, suffixes: tuple[str, ...], depth: int | None
) -> tuple[dict[str, dict], str]:
  """Returns what the file system knows of each file, and the folder of all."""
  if magic := _MAGIC.search(path):
    root = path[: path.rfind("/", 0, magic.start()) + 1]
    infos = {}
    listed: dict[str, dict[str, dict]] = {}
    for part in _without_braces(path):
      if _MAGIC.search(part):
        found = fs.glob(part, detail=True)
      else:
        # A bucket is asked once for a folder, not once for each file.
        folder = part.rpartition("/")[0]
        if folder not in listed:
          entries = fs.ls(folder, detail=True)
          listed[folder] = {entry["name"]: entry for entry in entries}
        found = {part: listed[folder][part]} if part in listed[folder] else {}
      if not found:
        raise FileNotFoundError(f"there is no file {part}")
      infos |= found
  elif fs.isdir(path):
    root = f"{path}/"
    infos = {
      file: info
      for file, info in fs.find(path, depth, detail=True).items()
      if file.lower().endswith(suffixes) and "/." not in file[len(path) :]
    }
  else:
    root = path[: path.rfind("/") + 1]
    infos = {path: fs.info(path)}
  infos = {file: _followed(fs, file, info) for file, info in infos.items()}
  return {f: i for f, i in infos.items() if i["type"] == "file"}, root


def _followed(fs: Any, path: str, info: dict) -> dict:
  """Returns what is known of the file that a link leads to."""
  if not info.get("islink"):
    return info
  try:
    return fs.info(path)
  except OSError:  # It is named as a file that cannot be read.
    return info | {"type": "file"}


def _without_braces(pattern: str) -> Iterator[str]:
  """Yields the patterns that one with braces stands for."""
  texts = _BRACES.split(pattern)
  choices = []
  for text in texts[1::2]:
    numbers = _RANGE.fullmatch(text)
    if numbers is None:
      choices.append(text.split(","))
      continue
    first, last = map(int, numbers.groups())
    if not 0 <= last - first < _MAX_FILES:
      raise errors.EcosError(
        f"{{{text}}} must go up, and name at most {_MAX_FILES:,} files"
      )
    width = len(numbers[1])
    choices.append([f"{n:0{width}}" for n in range(first, last + 1)])
  for chosen in itertools.islice(itertools.product(*choices), _MAX_FILES):
    yield "".join(
      itertools.chain.from_iterable(
        itertools.zip_longest(texts[::2], chosen, fillvalue="")
      )
    )


def _how_to_install(pattern: str, error: Exception) -> str:
  extra = _EXTRAS.get(pattern.partition("://")[0])
  if extra is None or not isinstance(error, ImportError):
    return f"cannot open {pattern}: {error}"
  return f"to read {pattern}: pip install 'ecos_jax[{extra}]'"

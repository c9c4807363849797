"""What is in a folder: its image files, and how many files of other kinds.

A listing has the name, size, time of change and digest of each image file, and
for a file that cannot be read the reason. It can be kept in a file. The next
time, only the folders' times of change are compared: if one has changed, all
are listed again, and new or changed files are read.

What cannot be opened is listed as unreadable; it does not end the listing.
"""

import collections
from collections.abc import Iterator
from concurrent import futures
import errno
import functools
import itertools
import json
import os
from pathlib import Path
import re
import stat as stat_lib
import time
from typing import Literal, NamedTuple

from absl import logging
import tqdm

from ecos_jax import files as files_lib
from ecos_jax.data import images as image_files

# Another set of formats makes another listing.
_VERSION = [3, *image_files.SUFFIXES]
# A folder that changed just now may change again at the same time stamp.
_SETTLED_NS = 2_000_000_000
_AT_ONCE = 64  # files that a thread checks at once, and such parts that wait
# Text that does not match may be part of a private name.
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


class File(NamedTuple):
  """An image file.

  Attributes:
    name: Its path below the folder.
    size: In bytes.
    time: Time of its last change, in ns.
    why: Why it cannot be read, None if it can.
    digest: `images.digest` of its content.
  """

  name: str
  size: int
  time: int
  why: str | None = None
  digest: str = ""


class Listing(NamedTuple):
  """What is in a folder.

  Attributes:
    files: The image files, by name, and folders that cannot be opened.
    others: Number of the other files, by suffix. Of hidden files, those that
      end as images do.
  """

  files: list[File]
  others: dict[str, int]


def suffixes(others: dict[str, int]) -> str:
  """Returns a text that counts other files by suffix, most frequent first."""
  kinds = sorted(others.items(), key=lambda kind: (-kind[1], kind[0]))
  return ", ".join(
    f"{count:,} {suffix}"
    + (" (pip install 'ecos_jax[heic]' reads them)" * (suffix in _NEED_HEIF))
    for suffix, count in kinds
  )


_NEED_HEIF = set(image_files.HEIF_SUFFIXES) - set(image_files.SUFFIXES)


def listed(path: Path, kept: Path | None) -> Listing:
  """Returns what is in a folder and its subfolders; warns of links.

  Hidden files and folders are left out, and so are links to folders: they could
  form a cycle.

  Args:
    path: The folder.
    kept: File that keeps the listing; None: it is not kept.
  """
  known: dict[str, File] = {}
  if kept is not None and (found := _kept(kept)) is not None:
    folders, listing = found
    # The size of a folder says nothing.
    if all(
      (stat := _stat(path / name)) is not None and stat[1] == changed
      for name, changed in folders.items()
    ):
      return listing
    known = {file.name: file for file in listing.files}
  began = time.time_ns()
  folders, files, new = {}, [], []
  others = collections.Counter[str]()
  links, outside, root = 0, 0, path.resolve()
  for folder in _folders(path, quiet=kept is None):
    # If a folder changed just now, its next change might go unnoticed.
    settled = folder.why is None and began - folder.changed > _SETTLED_NS
    folders[folder.name] = folder.changed if settled else None
    if folder.why is not None:
      files.append(File(folder.name, 0, 0, folder.why))
    for entry in folder.entries:
      name = folder.name + entry.name
      is_image = name.lower().endswith(image_files.SUFFIXES)
      match _kind(entry):
        # Such as ._x.jpg, which macOS puts beside x.jpg.
        case "file" if is_image and _is_hidden(entry):
          others[f"hidden {suffix(name)}"] += 1
        case _ if _is_hidden(entry):
          continue
        case "link":
          links += 1
        case "file" if not is_image:
          others[suffix(name)] += 1
        case "file":
          if entry.is_symlink():
            outside += not _within(path / name, root)
          file = known.get(name)
          if file is not None and _stat(path / name) == file[1:3]:
            files.append(file)
          else:
            new.append(name)
  files += _checked(path, new, quiet=kept is None)
  listing = Listing(sorted(files), dict(others))
  _warn(path, outside, links)
  # The second of several processes finds the listing as it should be.
  if kept is not None and listing.files != list(known.values()):
    content = {"version": _VERSION, "folders": folders, **listing._asdict()}
    files_lib.write(kept, json.dumps(content).encode())
  return listing


def _warn(path: Path, outside: int, links: int) -> None:
  """Tells of links; no names: a client's files are private."""
  for count, what in (
    (outside, "are links to files outside of the folder, which are used"),
    (
      links,
      "are links to folders and are left out: name such a folder as a source "
      "of its own, or put it in the place of the link",
    ),
  ):
    if count:
      logging.warning("%s: %d of the files %s", path, count, what)


def _kept(kept: Path) -> tuple[dict[str, int | None], Listing] | None:
  """Returns the folders and the files of a listing; None if it is no good."""
  try:
    found = json.loads(kept.read_bytes())
    if found["version"] == _VERSION:
      files = [File(*file) for file in found["files"]]
      return dict(found["folders"]), Listing(files, dict(found["others"]))
  except (FileNotFoundError, ValueError, LookupError, TypeError):
    pass
  return None


class _Folder(NamedTuple):
  """A folder: its name, time of change, entries, and why it lacks some."""

  name: str
  changed: int
  entries: list[os.DirEntry]
  why: str | None


def _folders(path: Path, *, quiet: bool) -> Iterator[_Folder]:
  """Yields the folder and those below it; `quiet` shows no progress."""
  pending = [""]
  bar = tqdm.tqdm(desc="listing", unit=" files", disable=quiet or None)
  with bar:
    while pending:
      name = pending.pop()
      changed, entries, why = 0, [], None
      try:
        changed = (path / name).stat().st_mtime_ns
        with os.scandir(path / name) as scan:
          for entry in scan:
            bar.update()
            entries.append(entry)
      except OSError as error:
        why = error.strerror
      pending += [
        f"{name}{entry.name}/"
        for entry in entries
        if not _is_hidden(entry) and _kind(entry) == "folder"
      ]
      yield _Folder(name, changed, entries, why)


def _kind(entry: os.DirEntry) -> Literal["folder", "link", "file", "other"]:
  """Returns what an entry is; `link`: to a folder; a broken link is a file."""
  try:
    if entry.is_dir(follow_symlinks=False):
      return "folder"
    if entry.is_symlink() and entry.is_dir():
      return "link"
    # A pipe would be read for ever.
    return "file" if entry.is_file() or entry.is_symlink() else "other"
  except OSError:  # links in a circle
    return "file"


def _is_hidden(entry: os.DirEntry) -> bool:
  return entry.name.startswith(".")


def suffix(name: str) -> str:
  """Returns how a file is counted that is no image by its name: `.mov`."""
  # For a million names, making a Path each would take seconds.
  end = os.path.splitext(name)[1].lower()  # noqa: PTH122
  return end if _SUFFIX.fullmatch(end) else "without a suffix"


def _within(path: Path, root: Path) -> bool:
  try:
    return path.resolve().is_relative_to(root)
  except (OSError, RuntimeError):  # links in a circle
    return True


def _checked(path: Path, names: list[str], *, quiet: bool) -> Iterator[File]:
  """Yields files, read and decoded."""
  rest = iter(names)
  # A task for each file would take longer than reading it, if it is small.
  parts = iter(lambda: list(itertools.islice(rest, _AT_ONCE)), [])
  check = functools.partial(_check, path)
  with (
    futures.ThreadPoolExecutor() as threads,
    # Only the cloud keeps a listing; a client's number of files is private.
    tqdm.tqdm(
      total=len(names),
      desc="checking",
      unit=" images",
      disable=quiet or None,
    ) as bar,
  ):
    while some := list(itertools.islice(parts, _AT_ONCE)):
      for files in threads.map(check, some):
        bar.update(len(files))
        yield from files


def _check(path: Path, names: list[str]) -> list[File]:
  files = []
  for name in names:
    try:
      data, file = read(path, name)
    except OSError as error:
      files.append(File(name, 0, 0, error.strerror))
    else:
      why = image_files.why_unreadable(data)
      files.append(file._replace(why=why, digest=image_files.digest(data)))
  return files


def read(path: Path, name: str) -> tuple[bytes, File]:
  """Returns the content of a file in a folder, and its entry in a listing.

  Raises:
    OSError: It cannot be read. A link may lead to a pipe or a device, which
      would be read for ever.
  """
  # Strings: making paths of a million names takes as long as opening them.
  full = f"{path}/{name}"
  if not stat_lib.S_ISREG(os.stat(full).st_mode):  # noqa: PTH116
    raise OSError(errno.EINVAL, "No regular file")
  with open(full, "rb") as stream:  # noqa: PTH123
    stat = os.fstat(stream.fileno())
    return stream.read(), File(name, stat.st_size, stat.st_mtime_ns)


def _stat(path: Path) -> tuple[int, int] | None:
  """Returns size and time of change; None if there is no such file."""
  try:
    stat = path.stat()
  except OSError:
    return None
  return stat.st_size, stat.st_mtime_ns

"""Source strings, which say where the samples of a pool or a client lie.

| string | samples |
|---|---|
| `folder:DIR` | image files in a folder and its subfolders |
| `folder:DIR[10%:30%]` | a part of these files |
| `images:FILE.npy` | uint8 images [n, h, w, 3] or [n, h, w] |
| `images:FILE.npz` | arrays `images`, as above, and perhaps `labels` [n] |
| `tfds:NAME:SPLIT` | a split of a TFDS dataset |
| `webdataset:PATTERN` | images in tar files, with classes beside them |
| `parquet:PATH` | a column of images in .parquet or .arrow files |
| `hub:OWNER/NAME:SPLIT` | the same, of a dataset of the Hugging Face hub |
| `features:PATH` | features [n, d] made elsewhere: .npy, .npz or .parquet |
| `DIR`, `FILE.npy`, `FILE.npz` | a folder or file of images |

PATTERN and PATH name a file, a folder, or files by `*`, `?`, `[a-z]` and
`{000..099}`; `#COLUMN` behind a PATH names the column. These, and
`folder:URL`, may lie in a bucket, such as `gs://bucket/DIR`.
"""

import os
from pathlib import Path
import re
from typing import NamedTuple

from ecos_jax import errors

_PART = re.compile(r"(.+)\[(\d+)%:(\d+)%\]")
# A split may hold colons, train[:10%], and a name one before its version.
_TFDS = re.compile(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?):(.+)")
_HUB = re.compile(r"hub:([^/:]+/[^/:]+)(?:/([^/:]+))?:([^/:]+)")


class Folder(NamedTuple):
  """Image files in a folder, from percent `part[0]` to percent `part[1]`."""

  path: Path
  part: tuple[int, int] = (0, 100)


class Images(NamedTuple):
  """An array file of images."""

  path: Path


class Tfds(NamedTuple):
  """A split of a TFDS dataset."""

  name: str
  split: str


class Bucket(NamedTuple):
  """Image files below a URL."""

  path: str


class Webdataset(NamedTuple):
  """Tar files of images, by a pattern."""

  path: str


class Tables(NamedTuple):
  """Files with a column of images, by a pattern; None: the only such column."""

  path: str
  column: str | None


class Hub(NamedTuple):
  """A split of a dataset of the Hugging Face hub."""

  name: str
  configuration: str
  split: str


class Features(NamedTuple):
  """Files of features, by a pattern, and the column of tables among them."""

  path: str
  column: str | None = None


Spec = Folder | Bucket | Images | Tfds | Webdataset | Tables | Hub | Features


def parse(text: str) -> Spec:
  """Returns what a source string names; only a path alone is looked up.

  Raises:
    EcosError: The string has none of the forms above.
  """
  prefix, colon, rest = text.partition(":")
  prefix += colon
  path = Path(rest).expanduser()
  if prefix == "features:":
    return Features(*_column(rest))
  if prefix == "images:":
    return Images(path)
  if prefix == "folder:":
    if "://" in rest:
      return Bucket(rest)
    # A folder may have brackets in its name.
    part = None if path.is_dir() else _PART.fullmatch(rest)
    return _part(*part.groups()) if part else Folder(path)
  if split := _TFDS.fullmatch(text):
    return Tfds(*split.groups())
  if prefix == "webdataset:":
    return Webdataset(_expanded(rest))
  if prefix == "parquet:":
    return Tables(*_column(rest))
  if split := _HUB.fullmatch(text):
    name, configuration, part = split.groups()
    return Hub(name, configuration or "default", part)
  path = Path(text).expanduser()
  if text and path.is_dir():
    return Folder(path)
  if path.suffix in (".npy", ".npz"):
    return Images(path)
  raise errors.EcosError(
    f"{text!r} names no data: give folder:DIR, images:FILE.npy, "
    "images:FILE.npz, tfds:NAME:SPLIT, webdataset:PATTERN, parquet:PATH, "
    "hub:OWNER/NAME:SPLIT, features:PATH, or the path of a folder or array "
    "file of images"
  )


def _expanded(path: str) -> str:
  # Text in, text out: a Path would make one slash of the two in an address.
  return path if "://" in path else os.path.expanduser(path)  # noqa: PTH111


def _column(path: str) -> tuple[str, str | None]:
  """Returns a path, and the column that is named behind it."""
  path, _, column = path.partition("#")
  return _expanded(path), column or None


def _part(folder: str, first: str, last: str) -> Folder:
  part = int(first), int(last)
  if not part[0] < part[1] <= 100:
    raise errors.EcosError(
      f"[{first}%:{last}%] is no part of a folder: [FROM%:TO%] needs "
      "0 <= FROM < TO <= 100"
    )
  return Folder(Path(folder).expanduser(), part)

"""Source strings, which say where the samples of a pool or a client lie.

| string | samples |
|---|---|
| `folder:DIR` | PNG, JPEG and WebP files in a folder and its subfolders |
| `folder:DIR[10%:30%]` | a part of these files |
| `images:FILE.npy` | uint8 images [n, h, w, 3] or [n, h, w] |
| `images:FILE.npz` | arrays `images`, as above, and perhaps `labels` [n] |
| `tfds:NAME:SPLIT` | a split of a TFDS dataset |
| `features:FILE.npy`, `features:DIR` | features [n, d] made elsewhere |
| `DIR`, `FILE.npy`, `FILE.npz` | a folder or file of images |
"""

from pathlib import Path
import re
from typing import NamedTuple

from ecos_jax import errors

_PART = re.compile(r"(.+)\[(\d+)%:(\d+)%\]")
# A split may hold colons, train[:10%], and a name one before its version.
_TFDS = re.compile(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?):(.+)")


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


class Features(NamedTuple):
  """An array file of features, or a folder of such files."""

  path: Path


Spec = Folder | Images | Tfds | Features


def parse(text: str) -> Spec:
  """Returns what a source string names; only a path alone is looked up.

  Raises:
    EcosError: The string has none of the forms above.
  """
  prefix, colon, rest = text.partition(":")
  prefix += colon
  path = Path(rest).expanduser()
  if prefix == "features:":
    return Features(path)
  if prefix == "images:":
    return Images(path)
  if prefix == "folder:":
    # A folder may have brackets in its name.
    part = None if path.is_dir() else _PART.fullmatch(rest)
    return _part(*part.groups()) if part else Folder(path)
  if split := _TFDS.fullmatch(text):
    return Tfds(*split.groups())
  path = Path(text).expanduser()
  if text and path.is_dir():
    return Folder(path)
  if path.suffix in (".npy", ".npz"):
    return Images(path)
  raise errors.EcosError(
    f"{text!r} names no data: give folder:DIR, images:FILE.npy, "
    "images:FILE.npz, tfds:NAME:SPLIT, features:FILE.npy, or the path of a "
    "folder or array file of images"
  )


def _part(folder: str, first: str, last: str) -> Folder:
  part = int(first), int(last)
  if not part[0] < part[1] <= 100:
    raise errors.EcosError(
      f"[{first}%:{last}%] is no part of a folder: [FROM%:TO%] needs "
      "0 <= FROM < TO <= 100"
    )
  return Folder(Path(folder).expanduser(), part)

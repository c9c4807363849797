"""Which names are classes: what the user says, and never a guess.

`data.classes` of the cloud and `classes` of a client are the names of the
classes, in the order of their labels, or one word:

| word | classes |
|---|---|
| `folders` | the folders of the pool that hold images, by name; cloud only |
| `numbers` | the name of a folder is the number of its class: 0, 1, 2 |

Names are compared in Unicode's form NFC: macOS writes é as two characters.
"""

from collections.abc import Iterable, Sequence
import difflib
import unicodedata

from ecos_jax import errors

FOLDERS, NUMBERS = ("folders",), ("numbers",)


def named(given: Sequence[object]) -> tuple[str, ...]:
  """Returns the names that a user gave, or one of the two words; () for none.

  Args:
    given: Names or numbers; a single text may hold several, with commas.

  Raises:
    EcosError: A name is empty, or given twice.
  """
  if len(given) == 1:
    given = str(given[0]).split(",")
  names = tuple(normal(str(name)).strip() for name in given)
  twice = [name for name in names if names.count(name) > 1]
  if twice or "" in names:
    what = f"twice: {twice[0]}" if twice else "that has no name"
    raise errors.EcosError(f"`classes` names a class {what}")
  return names


def normal(name: str) -> str:
  """Returns a name as it is compared with others."""
  return unicodedata.normalize("NFC", name)


def place(names: Sequence[str], folder: str) -> int:
  """Returns the place of a class among `names`; -1 if it is none of them.

  Args:
    names: As `named` returns them.
    folder: The path of a folder, or its last part alone is the name.
  """
  folder = normal(folder)
  for name in (folder, folder.rpartition("/")[2]):
    if name in names:
      return names.index(name)
  return -1


def near(name: str, found: Iterable[str]) -> list[str]:
  """Returns the names most like one that was not found, at most three."""
  folded = {found_name.casefold(): found_name for found_name in sorted(found)}
  likest = difflib.get_close_matches(name.casefold(), folded, 3)
  return [folded[key] for key in likest]


def missing(names: Iterable[str], found: Iterable[str]) -> str:
  """Returns a text about classes that were not found, with names like them.

  Args:
    names: The classes that were not found.
    found: Names that were.
  """
  found = set(found)
  texts = [
    f"{name!r} (near: {', '.join(likest)})"
    if (likest := near(name, found))
    else repr(name)
    for name in names
  ]
  return ", ".join(texts)

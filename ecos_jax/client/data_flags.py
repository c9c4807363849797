"""The flags that say how private data are read, and the data of --data."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
import numpy as np

from ecos_jax import cli
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.config import classes as classes_lib
from ecos_jax.config import spec as spec_lib
from ecos_jax.data import features
from ecos_jax.data import folder
from ecos_jax.data import images
from ecos_jax.data import pools


def define_classes() -> None:
  """Defines the flag of commands that read labels."""
  flags.DEFINE_list(
    "classes",
    None,
    "For folder:DIR, the names of the folders in the order of the cloud's "
    "classes: a,b,c; or `numbers`: the name of a folder is the number of its "
    "class. Take the list from the cloud, not from the data.",
  )


def classes(count: int) -> tuple[str, ...] | None:
  """Returns --classes; None if it is not given.

  Args:
    count: The cloud's number of classes.

  Raises:
    EcosError: --classes names another number, or is missing where --data is a
      folder.
  """
  f = flags.FLAGS
  if f.classes is None:
    if isinstance(spec_lib.parse(f.data), spec_lib.Folder):
      raise errors.EcosError(
        "--classes must name the folders that are classes, in the cloud's "
        "order: a,b,c; or say that their names are numbers: --classes=numbers"
      )
    return None
  names = classes_lib.named(f.classes)
  if names == classes_lib.FOLDERS:
    raise errors.EcosError(
      "--classes=folders is for the cloud: the list of the classes must come "
      "from there, not from the data"
    )
  if names != classes_lib.NUMBERS and len(names) != count:
    raise errors.EcosError(
      f"--classes names {len(names)} classes, the cloud has {count}: name all, "
      "in the cloud's order, also those that the data lack"
    )
  return names


def define_list_unreadable() -> None:
  """Defines the flag of commands that open folders."""
  cli.define_path(
    "list_unreadable",
    None,
    "A new file for the names of the files in folder:DIR that cannot be read, "
    "and why. By default only their number is told.",
  )


def opened(
  classes: Sequence[str] | None = None, ground: str = images.WHITE
) -> pools.Source:
  """Returns the private data that --data names; tells what is wrong with them.

  Args:
    classes: As in `pools.open_source`.
    ground: As in `images.rgb`.

  Raises:
    EcosError: They cannot be opened, or --list_unreadable exists.
  """
  f = flags.FLAGS
  with errors.about("data", f.data):
    # A refusal of an empty folder would show that it is empty.
    data = pools.open_source(
      f.data, f.data_dir, classes, may_be_empty=True, ground=ground
    )
  if isinstance(data, folder.FolderSource) and classes is not None:
    _tell_classes(data, classes)
  if f.list_unreadable is not None:
    unreadable = getattr(data, "unreadable", [])
    lines = [f"{file.name}: {file.why}" for file in unreadable]
    text = "".join(f"{files.printable(line)}\n" for line in lines)
    try:
      Path(f.list_unreadable).open("xb").close()
    except FileExistsError:
      raise errors.EcosError(
        f"--list_unreadable: {f.list_unreadable} exists: name a new file"
      ) from None
    files.write(Path(f.list_unreadable), text.encode())
  if isinstance(data, features.FeatureSource):
    bad = data.unusable()
    if bad:
      print(
        f"data     {bad:,} rows hold NaN, infinite or huge values: NaN and "
        "infinity count as zeros, and\n         the votes of these rows say "
        "nothing: leave them out"
      )
  return data


def _tell_classes(data: folder.FolderSource, classes: Sequence[str]) -> None:
  """Prints which classes no folder has: the owner may have misspelt them.

  No error: a refusal would show what the data lack.
  """
  names = set(classes) - set(classes_lib.NUMBERS) - data.class_names
  if names:
    near = classes_lib.missing(sorted(names), data.class_names)
    print(f"classes  no image is in a folder of the name {near}")
  if (data.labels(np.arange(len(data))) < 0).any():
    print("classes  images in other folders are of no class")

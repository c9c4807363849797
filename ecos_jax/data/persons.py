"""The person of each private sample, where the unit of privacy is a person.

| `persons` | ids |
|---|---|
| not given, `folder:DIR` | the folders in DIR, one for each person |
| not given, `images:FILE.npz` | the array `persons` [n] of the file |
| `FILE.npy` | integers or strings [n], in the order of the samples |
| else, `folder:DIR` | this column of DIR/metadata.csv, beside `file_name` |
| else, `features:PATH` | this column of the metadata of the features |
"""

import csv
from pathlib import Path

import numpy as np

from ecos_jax import errors
from ecos_jax.data import array_files
from ecos_jax.data import features
from ecos_jax.data import folder
from ecos_jax.data import pools


def read(source: pools.Source, text: str | None) -> np.ndarray:
  """Returns the person of each sample, [n] integers or strings.

  Args:
    source: The private samples.
    text: The argument `persons`.

  Raises:
    EcosError: The person of a sample is not known. The message names no file
      and no number of samples, which are private.
  """
  if text is None:
    ids = getattr(source, "persons", None)
    if ids is None:
      raise errors.EcosError(
        "`persons` must say whose the samples are: FILE.npy with an id for "
        "each, or a column of the metadata"
      )
    return ids
  with errors.about("persons", text):
    if text.endswith(".npy"):
      # A lone array is read under this name.
      return np.asarray(array_files.read(Path(text).expanduser())["images"])
    if isinstance(source, folder.FolderSource):
      ids = _of_files(source.path / "metadata.csv", source.names, text)
    else:
      rows = None
      if isinstance(source, features.FeatureSource):
        rows = source.metadata(np.arange(len(source)))
      if rows is None:
        raise errors.EcosError("`data` has no metadata: give FILE.npy")
      ids = [row.get(text) for row in rows]
    if any(type(i) not in (int, str) or i == "" for i in ids):
      raise errors.EcosError(
        "not every sample has an integer or text in this column of the metadata"
      )
    # Ids that differ in spaces alone are one person.
    return np.array([str(i).strip() for i in ids], np.str_)


def _of_files(path: Path, names: list[str], column: str) -> list[str | None]:
  """Returns a column of a table of files, None where a file is not in it."""
  found: dict[str, str] = {}
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      for row in csv.DictReader(file):
        name, value = row["file_name"], row[column]
        if found.setdefault(name, value) != value:
          raise errors.EcosError(f"{path} names a file twice, as two persons'")
  except KeyError as error:
    raise errors.EcosError(f"{path} has no column {error}") from error
  except (OSError, ValueError, csv.Error) as error:
    raise errors.EcosError(f"cannot read {path}: {error}") from error
  return [found.get(name) for name in names]

"""Lists of samples, such as those that were labelled before.

A list is the `index.csv` of a proxy, another .csv file with a column `key`, and
perhaps `source`, or a column `index`; or a text file with a key or an index a
line. A key is what a sample is called in its source, and stays when the pool
grows; an index is its place in this very pool.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ecos_jax import errors
from ecos_jax import files
from ecos_jax.data import pools

_KEYS_AT_ONCE = 1 << 16


class List(NamedTuple):
  """Some samples, as a file names them.

  Attributes:
    digest: The sha256 of the file.
    indices: Places in the pool.
    keys: (source, key); the source is None if the file does not say it.
  """

  digest: str
  indices: list[int]
  keys: list[tuple[str | None, str]]


def read(path: str) -> List:
  """Returns what a file names.

  Raises:
    EcosError: It cannot be read, or names nothing.
  """
  try:
    data = Path(path).expanduser().read_bytes()
    lines = data.decode("utf-8-sig").splitlines(keepends=True)
    header = next(csv.reader(lines[:1]), [])
    if "key" in header:
      rows = csv.DictReader(lines)
      keys = [(row.get("source"), row["key"] or "") for row in rows]
      found = List(files.digest(data), [], keys)
    elif "index" in header:
      rows = csv.DictReader(lines)
      indices = [int(row["index"]) for row in rows]
      found = List(files.digest(data), indices, [])
    else:
      texts = [text for line in lines if (text := line.rstrip("\r\n"))]
      found = List(
        files.digest(data),
        [int(text) for text in texts if text.isdecimal()],
        [(None, text) for text in texts if not text.isdecimal()],
      )
  except (OSError, ValueError, TypeError, csv.Error) as error:
    raise errors.EcosError(
      f"{path} is no list of samples ({error}): give the index.csv of a proxy, "
      "or a key or an index a line"
    ) from error
  if not found.indices and not found.keys:
    raise errors.EcosError(f"{path} names no sample")
  return found


def find(listed: List, pool: pools.Pool) -> tuple[np.ndarray, int]:
  """Returns the samples of a list in a pool, and how many are not in it.

  Args:
    listed: The list.
    pool: The pool.

  Returns:
    int64 [n], ascending, each once; and the number of entries without a sample.
  """
  found = [index for index in listed.indices if index < len(pool)]
  missing = len(listed.indices) - len(found)
  wanted = set(listed.keys)
  seen = set()
  if wanted:
    for start in range(0, len(pool), _KEYS_AT_ONCE):
      rows = np.arange(start, min(start + _KEYS_AT_ONCE, len(pool)))
      names = [pool.source_names[source] for source in pool.source_of(rows)]
      for row, name, key in zip(rows, names, pool.keys(rows), strict=True):
        entries = {(name, key), (None, key)} & wanted
        if entries:
          seen |= entries
          found.append(int(row))
  return np.unique(np.array(found, np.int64)), missing + len(wanted - seen)

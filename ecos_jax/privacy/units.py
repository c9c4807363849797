"""The unit of the guarantee: a sample, or a person with all samples of theirs.

Where persons are the units, one random sample of each person takes part in an
answer. So a person changes an answer no more than a sample does otherwise, and
the same accounting holds (docs/privacy.md, "Persons").

    >>> persons = Persons(np.array(["ann", "bob", "ann", "ann"]))
    >>> len(persons)
    2
    >>> persons.pick(np.array([2**63, 2**63], np.uint64))
    array([2, 1])
"""

import numpy as np

from ecos_jax import errors

# These mean that an id is missing. Taken as an id, one would make one person of
# samples of several persons, each of whom would then take part twice.
_MISSING = ("", "-1", "<NA>", "NA", "NaN", "NaT", "None", "nan", "null")


def check(ids: np.ndarray) -> None:
  """Checks that ids say of each sample whose it is.

  Args:
    ids: As in `Persons`.

  Raises:
    EcosError: They are of another type or shape, or one is missing.
  """
  if ids.ndim != 1 or ids.dtype.kind not in "iuUS":
    raise errors.EcosError(
      "`persons` must be [n] integers or strings, an id for each sample, got "
      f"{ids.dtype} with {ids.ndim} axes"
    )
  kind = ids.dtype.kind
  missing = np.array(_MISSING, kind) if kind in "US" else -1
  if np.isin(ids, missing).any():
    raise errors.EcosError(
      "`persons` must say of every sample whose it is: "
      f"{', '.join(map(repr, _MISSING))} are no ids"
    )


class Persons:
  """Which samples are whose; private."""

  def __init__(self, ids: np.ndarray):
    """Groups the samples.

    Args:
      ids: [n] integers or strings: samples with the same id are one person's.

    Raises:
      EcosError: As `check`.
    """
    check(ids)
    self.ids = ids
    _, owners, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    self._samples = np.argsort(owners, kind="stable")
    self._sizes = sizes.astype(np.uint64)
    self._first = np.cumsum(sizes) - sizes

  def __len__(self) -> int:
    """Returns the number of persons."""
    return len(self._sizes)

  def pick(self, bits: np.ndarray) -> np.ndarray:
    """Returns one sample of each person, int64 [..., P].

    Args:
      bits: Random uint64 [..., P].
    """
    # A fraction of 2^32, times the number of the person's samples.
    places = (bits >> np.uint64(32)) * self._sizes >> np.uint64(32)
    return self._samples[self._first + places.astype(np.int64)]

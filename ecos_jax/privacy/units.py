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


class Persons:
  """Which samples are whose; private."""

  def __init__(self, ids: np.ndarray):
    """Groups the samples.

    Args:
      ids: [n] integers or strings: samples with the same id are one person's.

    Raises:
      EcosError: The ids are of another type or shape.
    """
    if ids.ndim != 1 or ids.dtype.kind not in "iuUS":
      raise errors.EcosError(
        "`persons` must be [n] integers or strings, an id for each sample, got "
        f"{ids.dtype} with {ids.ndim} axes"
      )
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

"""The largest and smallest values that a run and a message may have.

The configuration refuses what the client would refuse later, so both read the
limits here.
"""

import dataclasses
from typing import Any

# The privacy accounting is exact in double precision within these limits.
MIN_SIGMA, MAX_SIGMA = 0.25, 16384.0
MIN_DELTA, MAX_DELTA = 1e-9, 0.1
# Then gamma is a multiple of 2^-64, so subsamples can be drawn exactly.
MIN_GAMMA = 2.0**-12
# Directions of a question, and by how much a sample raises its cluster's count.
MAX_DIRECTIONS, MAX_WEIGHT = 1024, 32
# Sums of votes in a response, of all classes: they get noise one by one.
MAX_SUMS = 2**20
# 100 times the largest codebook of the paper's study, rounded up.
MAX_CENTROIDS = 100_000
# The widest public encoders have a few thousand features.
MAX_DIMENSION = 8192
MAX_LABELS = 10_000_000
MAX_CLASSES = 100_000
# Requests times classes: each is a count that gets noise, some minutes in all.
MAX_LABEL_COUNTS = 10**8
# More samples than any client has; bounds the counts in a response.
MAX_SAMPLES = 2**40
# Far more votes than samples, so no threshold of use is refused.
MAX_THRESHOLD = 1e12
MAX_IMAGE_SIZE = 1024
# Weights of a delivered model, 128 MiB: three times the largest network here.
MAX_WEIGHTS = 2**25


def max_sigma(shift: int) -> float:
  """Returns the largest sigma that several votes may have.

  Then no count has noise of more than `MAX_SIGMA`, and the accounting fits in
  memory.

  Args:
    shift: The square of the L2 sensitivity.
  """
  return min(MAX_SIGMA / shift**0.5, 2**18 / shift)


def number(default: Any, interval: str) -> Any:
  """Returns a dataclass field whose value must lie in an interval.

  Args:
    default: The default value; a field that may be None need not lie in it.
    interval: As in mathematics, an end excluded by a parenthesis: `(0, 1]`,
      `[1, inf)`.
  """
  return dataclasses.field(default=default, metadata={"interval": interval})

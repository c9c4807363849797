"""The words that fields of the configuration choose among."""

import enum


class Benchmark(enum.Enum):
  """Which benchmark's data a run without sources reads."""

  DIGITS = "digits"
  ICONS = "icons"


class Split(enum.Enum):
  """Where the client's domain lies (ECOS, section 4.1)."""

  ID_OOD = "id_ood"
  OOD = "ood"


class Relation(enum.Enum):
  """The neighbour relation that epsilon is claimed for."""

  ADD_REMOVE = "add_remove"
  REPLACE_ONE = "replace_one"


class Unit(enum.Enum):
  """Whose presence epsilon hides: what one neighbour has more or less."""

  SAMPLE = "sample"
  PERSON = "person"


class Ground(enum.Enum):
  """The colour on which transparent images are laid."""

  WHITE = "white"
  BLACK = "black"


class Method(enum.Enum):
  """How the proxy is chosen."""

  ECOS = "ecos"
  ECOS_PAPER = "ecos_paper"
  RANDOM = "random"
  KCENTER = "kcenter"
  MAK = "mak"
  ALL = "all"
  IDEAL = "ideal"
  LOCAL = "local"


# These methods ask the client.
ASKING = (Method.ECOS, Method.ECOS_PAPER)
# These methods read the client's data, or know which source is like them.
SIMULATION_ONLY = (Method.MAK, Method.IDEAL, Method.LOCAL)


class Question(enum.Enum):
  """What a query asks: votes on centroids, on directions, or on both."""

  AUTO = "auto"
  COUNTS = "counts"
  SIGNS = "signs"
  BOTH = "both"


class Filter(enum.Enum):
  """Which clusters get no quota, whatever their estimate."""

  NONE = "none"
  THRESHOLD = "threshold"


class Estimate(enum.Enum):
  """How the votes of a cluster are estimated from its noisy score."""

  SCORE = "score"
  POSTERIOR = "posterior"


class Within(enum.Enum):
  """How samples are chosen inside a cluster."""

  KCENTER = "kcenter"
  RANDOM = "random"
  NEAREST = "nearest"


class Classes(enum.Enum):
  """How the budget is divided among the classes of labels by votes."""

  IGNORE = "ignore"
  BALANCED = "balanced"
  CLIENT = "client"


class LabelledBy(enum.Enum):
  """How the client labels the proxy."""

  AUTO = "auto"
  KNN = "knn"
  VOTES = "votes"


class Unlabelled(enum.Enum):
  """Which images of the pool FixMatch trains on without their labels."""

  ALL = "all"
  COVERED = "covered"
  ABSTAINED = "abstained"


class Task(enum.Enum):
  """Where the labels of the proxy come from."""

  MANUAL = "manual"
  CLIENT = "client"
  DISTILL = "distill"


class ComputeType(enum.Enum):
  """The type that a pretrained encoder computes in, on every platform."""

  FLOAT32 = "float32"
  BFLOAT16 = "bfloat16"


class FeatureType(enum.Enum):
  """The type of the numbers in the feature bank."""

  FLOAT16 = "float16"
  FLOAT32 = "float32"


class Algorithm(enum.Enum):
  """Whether k-means reads its rows in every iteration, or once in batches."""

  LLOYD = "lloyd"
  MINI_BATCH = "mini_batch"

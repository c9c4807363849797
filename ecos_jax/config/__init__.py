"""The configuration of a run: typed and public; `checks` has what it must be.

Private data are never part of a configuration.
"""

import dataclasses
import enum
import json
from typing import Any

from ecos_jax import errors
from ecos_jax.config import spec as spec_lib

# Of an encoder; the client refuses larger ones.
MAX_IMAGE_SIZE = 1024


class Split(enum.Enum):
  """Where the client's domain lies (ECOS, section 4.1)."""

  ID_OOD = "id_ood"
  OOD = "ood"


class Relation(enum.Enum):
  """The neighbour relation that epsilon is claimed for."""

  ADD_REMOVE = "add_remove"
  REPLACE_ONE = "replace_one"


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


# They ask the client.
ASKING = (Method.ECOS, Method.ECOS_PAPER)
# They know what no cloud does, the client's data or which source is like them.
SIMULATION_ONLY = (Method.MAK, Method.IDEAL, Method.LOCAL)


class Filter(enum.Enum):
  """Which clusters are dropped, whatever their estimate."""

  NONE = "none"
  THRESHOLD = "threshold"


class Estimate(enum.Enum):
  """How many votes a cluster is taken to have."""

  SCORE = "score"
  POSTERIOR = "posterior"


class Within(enum.Enum):
  """How samples are chosen inside a cluster."""

  KCENTER = "kcenter"
  RANDOM = "random"
  NEAREST = "nearest"


class Task(enum.Enum):
  """How the proxy gets its targets."""

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


@dataclasses.dataclass
class Data:
  """The pool, and in a simulation what the client has and is tested on.

  `sources` are the pool, each as in the client's --data: `folder:DIR`,
  `images:FILE.npz`, `tfds:NAME:SPLIT`, `features:PATH`; `client_data` and
  `test_data` likewise, for a simulation. `classes` names the folders or the
  TFDS classes that are classes, in the order of their labels, and with
  `labelled_only` all other samples are left out, which a benchmark may do.
  `dir` is where TFDS keeps its data.

  Without sources it is the Digits benchmark: where its files lie, the client's
  domain, the sizes.
  """

  sources: tuple[str, ...] = ()
  client_data: str | None = None
  test_data: str | None = None
  classes: tuple[str, ...] = ()
  labelled_only: bool = False
  dir: str | None = None
  client: str = "usps"
  split: Split = Split.ID_OOD
  train_images: int = 7438
  test_images: int = 5000


@dataclasses.dataclass
class Encoder:
  """The public feature extractor.

  The last three are of pretrained ones. `weights` is a file (.safetensors,
  .pth) or `hub:OWNER/NAME`, and by default where `encoders/registry.py` says;
  images are `image_size` high and wide, by default as many as the network was
  trained with.
  """

  name: str = "hog_grey"
  batch_size: int = 256
  image_size: int | None = None
  weights: str | None = None
  dtype: ComputeType = ComputeType.FLOAT32


@dataclasses.dataclass
class Bank:
  """The feature bank on disk."""

  dtype: FeatureType = FeatureType.FLOAT16
  shard_rows: int = 8192


class Algorithm(enum.Enum):
  """How k-means reads its rows: again and again, or once in small batches."""

  LLOYD = "lloyd"
  MINI_BATCH = "mini_batch"


@dataclasses.dataclass
class Codebook:
  """k-means on the bank, fitted on a sample; 0 samples a centroid for all.

  `mini_batch` reads all of the bank, once, whatever the other fields say.

  With `first_round` centroids the client is asked twice: about these, and then
  about the rest of `size`, which lie in the clusters where it has votes. 0: it
  is asked once.
  """

  size: int = 100
  algorithm: Algorithm = Algorithm.LLOYD
  first_round: int = 0
  sample_per_centroid: int = 256
  iterations: int = 50
  tolerance: float = 1e-4


@dataclasses.dataclass
class Privacy:
  """The terms that the query proposes; in simulation also what the client does.

  `sigma` is the noise of one answer. Where `codebook.first_round` asks for
  two, each has more, so that both together cost no more; `first_part` is the
  part of 1 / sigma^2 that the first has.

  `insecure_noise_seed` replaces the operating system's entropy by a seed: for
  tests and studies only, and the response then says that it is not private.
  """

  sigma: float = 10.0
  gamma: float = 0.8
  delta: float = 1e-5
  relation: Relation = Relation.ADD_REMOVE
  first_part: float = 0.2
  insecure_noise_seed: int | None = None


@dataclasses.dataclass
class Sampling:
  """Choice of the proxy; the formulas are in docs/sampling.md.

  Of the clusters that `filter` leaves, each gets a quota in proportion to
  v (v / n)^`density_power`, with v the votes that it is taken to have, by
  `estimate`, and n its size. `threshold` is in multiples of sigma, for that
  filter only.

  Inside a cluster, `within` chooses among the share `likely` of the samples
  where the client's are densest, and of these the share `central` that is
  nearest to the centroid.

  The method `ecos_paper` is `ecos` with all of these as the paper has them
  (`PAPER`), whatever they say here.
  """

  method: Method = Method.ECOS
  budget: int = 1000
  filter: Filter = Filter.NONE
  threshold: float = 1.0
  estimate: Estimate = Estimate.POSTERIOR
  density_power: float = 0.5
  within: Within = Within.KCENTER
  likely: float = 0.7
  central: float = 1.0

  def resolved(self) -> "Sampling":
    """Returns the options that the method runs with."""
    if self.method is Method.ECOS_PAPER:
      return dataclasses.replace(self, **PAPER)
    return self


# Outlined in the paper; the threshold and the plain proportion are ours.
PAPER: dict[str, Any] = {
  "filter": Filter.THRESHOLD,
  "threshold": 1.0,
  "estimate": Estimate.SCORE,
  "density_power": 0.0,
  "within": Within.KCENTER,
  "likely": 1.0,
  "central": 1.0,
}


@dataclasses.dataclass
class Train:
  """Training on the proxy; with 0 `steps` the run ends at the proxy.

  Images are `image_size` high and wide. A pretrained `model` starts from
  `weights`, which are as in `Encoder`, with a new last layer.

  `unlabelled_ratio` unlabelled images of the pool go with each labelled one
  through FixMatch; 0 is supervised training.
  """

  task: Task = Task.MANUAL
  model: str = "convnet"
  weights: str | None = None
  image_size: int = 28
  steps: int = 1500
  batch_size: int = 64
  learning_rate: float = 2e-3
  weight_decay: float = 5e-4
  unlabelled_ratio: int = 0
  confidence: float = 0.95
  log_every: int = 100
  checkpoint_every: int = 500


@dataclasses.dataclass
class Labelling:
  """Private-kNN labels by the client, for `train.task=client`.

  On each request vote the `neighbours` nearest of a share `gamma` of the
  client's samples. Where the largest count, with noise of `sigma_screen`,
  reaches `threshold`, the class with the most votes is answered, after noise of
  `sigma_vote` on each count. `max_epsilon` is the most that the labels may
  cost: it decides how many are given. The request proposes all but that to a
  remote client, which decides itself. The defaults are for 5,000 requests, of
  which 1,000 are answered for an epsilon of 5.

  FixMatch (`train.unlabelled_ratio` > 0) takes the images that have no label
  from the whole pool, or with `abstained_as_unlabelled` from the proxy only.
  """

  neighbours: int = 150
  gamma: float = 0.5
  sigma_screen: float = 53.0
  sigma_vote: float = 25.0
  threshold: float = 120.0
  max_epsilon: float = 5.0
  abstained_as_unlabelled: bool = False


class Logits(enum.Enum):
  """When a teacher's logits are computed."""

  CACHED = "cached"
  ON_THE_FLY = "on_the_fly"


@dataclasses.dataclass
class Distill:
  """A teacher for `train.task=distill`; its student is `train.model`.

  The teacher is trained on `teacher_images` labelled images of the pool (0 for
  all), or is the model whose `checkpoints/` a run left at `teacher_checkpoint`.
  Cached logits are those of the images as they are; on the fly the teacher sees
  the view that the student sees, shifted and turned if `augment`. `hard_share`
  is the weight of the teacher's classes against its softened logits.
  """

  teacher: str = "convnet_large"
  teacher_checkpoint: str | None = None
  teacher_images: int = 0
  teacher_steps: int = 1000
  temperature: float = 4.0
  hard_share: float = 0.0
  logits: Logits = Logits.CACHED
  augment: bool = True


@dataclasses.dataclass
class Client:
  """Where the client runs.

  With `remote` the job stops after writing the query and goes on once the
  response lies in the workdir. `simulate_debug` lets the simulation keep the
  exact coverage in the workdir.
  """

  remote: bool = False
  simulate_debug: bool = False


@dataclasses.dataclass
class Config:
  """Everything that determines a run, given the data."""

  seed: int = 1
  data: Data = dataclasses.field(default_factory=Data)
  encoder: Encoder = dataclasses.field(default_factory=Encoder)
  bank: Bank = dataclasses.field(default_factory=Bank)
  codebook: Codebook = dataclasses.field(default_factory=Codebook)
  privacy: Privacy = dataclasses.field(default_factory=Privacy)
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  train: Train = dataclasses.field(default_factory=Train)
  labelling: Labelling = dataclasses.field(default_factory=Labelling)
  distill: Distill = dataclasses.field(default_factory=Distill)
  client: Client = dataclasses.field(default_factory=Client)

  @property
  def of_features(self) -> bool:
    """Returns whether the pool is of features: then all ends at the proxy."""
    specs = map(spec_lib.parse, self.data.sources)
    return any(isinstance(spec, spec_lib.Features) for spec in specs)

  def to_json(self) -> str:
    """Returns the resolved configuration as JSON, enums by value."""
    return json.dumps(
      dataclasses.asdict(self), indent=2, default=lambda member: member.value
    )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
  """Returns {'codebook.size': 100, ...}: every leaf by its dotted name."""
  leaves = {}
  for field in dataclasses.fields(value):
    member = getattr(value, field.name)
    if dataclasses.is_dataclass(member):
      leaves |= flatten(member, f"{prefix}{field.name}.")
    else:
      leaves[prefix + field.name] = (
        member.value if isinstance(member, enum.Enum) else member
      )
  return leaves


def check_overrides(argv: list[str]) -> None:
  """Checks that every `--config.a.b` on a command line names a field.

  Raises:
    ConfigError: An unknown field, with the valid ones of its group.
  """
  valid = flatten(Config())
  for argument in argv:
    name, _, _ = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or not name.startswith("config."):
      continue
    name = name.removeprefix("config.")
    if name not in valid:
      group, _, _ = name.rpartition(".")
      near = [f for f in valid if f.rpartition(".")[0] == group] or valid
      raise errors.ConfigError(
        f"unknown field --config.{name}; valid: {', '.join(near)}"
      )

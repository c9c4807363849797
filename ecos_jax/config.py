"""The configuration of a run: typed, public, checked before anything starts.

Private data are never part of a configuration. `Config.validate` collects every
error at once, each naming its flag.
"""

import dataclasses
import enum
import json
import math
from typing import Any

from ecos_jax import errors

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
  DISCOVERY = "discovery"


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
  `coarse` clusters of centroids make very large codebooks affordable: about the
  square root of `size`. 0: one level.

  With `coarse_round` centroids the client is asked twice: about these, and then
  about the rest of `size`, which lie in the clusters where it has votes. 0: it
  is asked once.
  """

  size: int = 100
  algorithm: Algorithm = Algorithm.LLOYD
  coarse: int = 0
  coarse_round: int = 0
  sample_per_centroid: int = 256
  iterations: int = 50
  tolerance: float = 1e-4


@dataclasses.dataclass
class Privacy:
  """The terms that the query proposes; in simulation also what the client does.

  `sigma` is the noise of one answer. Where `codebook.coarse_round` asks for
  two, each has more, so that both together cost no more; `coarse_part` is the
  part of 1 / sigma^2 that the first has.

  `insecure_noise_seed` replaces the operating system's entropy by a seed: for
  tests and studies only, and the response then says that it is not private.
  """

  sigma: float = 10.0
  gamma: float = 0.8
  delta: float = 1e-5
  relation: Relation = Relation.ADD_REMOVE
  coarse_part: float = 0.2
  insecure_noise_seed: int | None = None


@dataclasses.dataclass
class Sampling:
  """Choice of the proxy; the formulas are in docs/sampling.md.

  Of the clusters that `filter` leaves, each gets a quota in proportion to
  v (v / n)^`density_power`, with v the votes that it is taken to have, by
  `estimate`, and n its size. `threshold` is in multiples of sigma and for that
  filter only; `false_discovery` is the rate of the filter `discovery`.

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
  false_discovery: float = 0.1
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

  def validate(self) -> None:
    """Checks every field.

    Raises:
      ConfigError: All errors at once, each naming its flag.
    """
    positive = [
      "data.train_images",
      "data.test_images",
      "encoder.batch_size",
      "bank.shard_rows",
      "codebook.size",
      "codebook.iterations",
      "sampling.budget",
      "train.image_size",
      "train.batch_size",
      "train.learning_rate",
      "train.log_every",
      "train.checkpoint_every",
      "labelling.neighbours",
      "labelling.sigma_screen",
      "labelling.sigma_vote",
      "labelling.max_epsilon",
      "distill.teacher_steps",
      "distill.temperature",
      "privacy.sigma",
    ]
    not_negative = [
      "seed",
      "codebook.coarse",
      "codebook.coarse_round",
      "codebook.tolerance",
      "codebook.sample_per_centroid",
      "sampling.threshold",
      "train.steps",
      "sampling.density_power",
      "train.weight_decay",
      "train.unlabelled_ratio",
      "distill.teacher_images",
    ]
    fields = flatten(self)
    found = [
      f"--config.{name} must be > 0, got {fields[name]}"
      for name in positive
      if not 0 < fields[name] < float("inf")
    ]
    found += [
      f"--config.{name} must be >= 0, got {fields[name]}"
      for name in not_negative
      if not 0 <= fields[name] < float("inf")
    ]
    found += [
      f"--config.{name} must lie in (0, 1], got {fields[name]}"
      for name in (
        "privacy.gamma",
        "sampling.likely",
        "sampling.central",
        "train.confidence",
        "labelling.gamma",
      )
      if not 0 < fields[name] <= 1
    ]
    if self.codebook.coarse > self.codebook.size:
      found.append(
        f"--config.codebook.coarse={self.codebook.coarse} is more than "
        f"--config.codebook.size={self.codebook.size}"
      )
    if self.codebook.coarse and self.codebook.algorithm is not Algorithm.LLOYD:
      found.append(
        "--config.codebook.coarse needs --config.codebook.algorithm=lloyd, got "
        f"{self.codebook.algorithm.value}"
      )
    if self.encoder.image_size is not None and not (
      0 < self.encoder.image_size <= MAX_IMAGE_SIZE
    ):
      found.append(
        f"--config.encoder.image_size must lie in (0, {MAX_IMAGE_SIZE}], got "
        f"{self.encoder.image_size}"
      )
    found += self._round_errors()
    found += self._source_errors()
    found += self._labelling_errors()
    if not 0 <= self.distill.hard_share <= 1:
      found.append(
        "--config.distill.hard_share must lie in [0, 1], got "
        f"{self.distill.hard_share}"
      )
    if not self.train.steps and self.sampling.method is Method.LOCAL:
      found.append(
        "--config.train.steps=0 ends at the proxy, and "
        "--config.sampling.method=local has none"
      )
    if self.train.task is Task.DISTILL and self.train.unlabelled_ratio:
      found.append(
        "--config.train.unlabelled_ratio is for labelled proxies: it must be 0 "
        "with --config.train.task=distill"
      )
    found += [
      f"--config.{name} must lie in (0, 1), got {fields[name]}"
      for name in (
        "privacy.delta",
        "privacy.coarse_part",
        "sampling.false_discovery",
      )
      if not 0 < fields[name] < 1
    ]
    if self.seed >= 2**32:
      found.append(f"--config.seed must be below 2^32, got {self.seed}")
    noise_seed = self.privacy.insecure_noise_seed
    if noise_seed is not None and noise_seed < 0:
      found.append(
        "--config.privacy.insecure_noise_seed must be >= 0 or None, "
        f"got {noise_seed}"
      )
    if self.client.remote:
      if self.sampling.method in SIMULATION_ONLY:
        found.append(
          f"--config.sampling.method={self.sampling.method.value} knows the "
          "client's data, so it exists in simulation only: drop "
          "--config.client.remote"
        )
      if noise_seed is not None:
        found.append(
          "--config.privacy.insecure_noise_seed is for simulation: the remote "
          "client draws its own noise; drop the one or --config.client.remote"
        )
    if found:
      raise errors.ConfigError("; ".join(found))

  @property
  def of_features(self) -> bool:
    """Returns whether the pool is of features: then all ends at the proxy."""
    return any(spec.startswith("features:") for spec in self.data.sources)

  def _round_errors(self) -> list[str]:
    book, method = self.codebook, self.sampling.method
    if not book.coarse_round:
      return []
    round_flag = f"--config.codebook.coarse_round={book.coarse_round}"
    found = []
    if book.coarse_round >= book.size:
      found.append(
        f"{round_flag} leaves nothing of --config.codebook.size={book.size}"
      )
    elif book.coarse > book.size - book.coarse_round:
      found.append(
        f"--config.codebook.coarse={book.coarse} is more than {round_flag} "
        f"leaves of --config.codebook.size={book.size}"
      )
    if method not in ASKING:
      found.append(
        f"{round_flag}: --config.sampling.method={method.value} asks nothing"
      )
    if book.algorithm is not Algorithm.LLOYD or not book.sample_per_centroid:
      found.append(
        f"{round_flag} needs --config.codebook.algorithm=lloyd, and "
        "--config.codebook.sample_per_centroid, 1 or more: the second round is "
        "fitted on a sample"
      )
    return found

  def _source_errors(self) -> list[str]:
    data, method = self.data, self.sampling.method
    if not data.sources:
      return [
        f"--config.data.{name} is for a pool of your own: give "
        "--config.data.sources"
        for name in ("client_data", "test_data", "classes", "labelled_only")
        if getattr(data, name)
      ]
    found = []
    if data.client_data is not None and self.client.remote:
      found.append(
        "--config.data.client_data is for simulation: drop it or "
        "--config.client.remote"
      )
    asks = method in (*ASKING, *SIMULATION_ONLY)
    asks |= self.train.task is Task.CLIENT
    if data.client_data is None and asks and not self.client.remote:
      found.append(
        "there is no client: give --config.client.remote=True, or "
        "--config.data.client_data to simulate one"
      )
    if self.train.task is Task.CLIENT and not data.classes:
      found.append("--config.data.classes must name the client's classes")
    if self.of_features != (self.encoder.name == "identity"):
      found.append(
        f"--config.encoder.name={self.encoder.name}: a pool of features, and "
        "no other, needs identity"
      )
    if self.of_features and (
      self.train.task is not Task.MANUAL or method is Method.LOCAL
    ):
      found.append(
        "a pool of features ends at the proxy: it needs "
        "--config.train.task=manual, and no --config.sampling.method=local"
      )
    return found

  def _labelling_errors(self) -> list[str]:
    found = []
    if not math.isfinite(self.labelling.threshold):
      found.append(
        "--config.labelling.threshold must be finite, got "
        f"{self.labelling.threshold}"
      )
    if self.train.task is not Task.CLIENT:
      return found
    if self.privacy.relation is not Relation.ADD_REMOVE:
      found.append(
        "--config.privacy.relation must be add_remove with "
        "--config.train.task=client: for labels no other bound is proven, got "
        f"{self.privacy.relation.value}"
      )
    if (
      self.labelling.abstained_as_unlabelled and not self.train.unlabelled_ratio
    ):
      found.append(
        "--config.labelling.abstained_as_unlabelled needs FixMatch: give "
        "--config.train.unlabelled_ratio, 1 or more"
      )
    return found

  def check_pool(self, size: int) -> None:
    """Checks what depends on the number of samples in the pool.

    Raises:
      ConfigError: The budget or the codebook is larger than the pool.
    """
    found = []
    if self.sampling.budget > size and self.sampling.method not in (
      Method.ALL,
      Method.LOCAL,
    ):
      found.append(
        f"--config.sampling.budget={self.sampling.budget} is larger than the "
        f"pool of {size} samples"
      )
    if self.codebook.size > size and self.sampling.method in ASKING:
      found.append(
        f"--config.codebook.size={self.codebook.size} is larger than the pool "
        f"of {size} samples"
      )
    if found:
      raise errors.ConfigError("; ".join(found))

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

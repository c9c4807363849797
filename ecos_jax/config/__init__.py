"""The configuration of a run.

It is public: private data are never part of a configuration. `config.checks`
says which configurations can run.
"""

import dataclasses
import json
from typing import Any

from ecos_jax.config import limits
from ecos_jax.config import spec as spec_lib
from ecos_jax.config.enums import ASKING as ASKING
from ecos_jax.config.enums import SIMULATION_ONLY as SIMULATION_ONLY
from ecos_jax.config.enums import Algorithm
from ecos_jax.config.enums import Benchmark
from ecos_jax.config.enums import Classes
from ecos_jax.config.enums import ComputeType
from ecos_jax.config.enums import Estimate
from ecos_jax.config.enums import FeatureType
from ecos_jax.config.enums import Filter
from ecos_jax.config.enums import Ground
from ecos_jax.config.enums import LabelledBy
from ecos_jax.config.enums import Method
from ecos_jax.config.enums import Question
from ecos_jax.config.enums import Relation
from ecos_jax.config.enums import Split
from ecos_jax.config.enums import Task
from ecos_jax.config.enums import Unit
from ecos_jax.config.enums import Unlabelled
from ecos_jax.config.enums import Within
from ecos_jax.config.flat import flatten as flatten
from ecos_jax.config.limits import number

_SIGMA = f"[{limits.MIN_SIGMA}, {limits.MAX_SIGMA}]"
_GAMMA = f"[{limits.MIN_GAMMA}, 1]"


@dataclasses.dataclass
class Data:
  """The pool; in a simulation also the client's data and the test data.

  Sources are strings as in `ecos_jax.config.spec`: `folder:DIR`,
  `images:FILE.npz`, `tfds:NAME:SPLIT`, `webdataset:PATTERN`, `parquet:PATH`,
  `hub:OWNER/NAME:SPLIT`, `features:PATH`. Without sources, the run is on a
  benchmark, and the fields from `dir` on choose its data.
  """

  sources: tuple[str, ...] = ()
  """The sources that the pool consists of."""
  client_data: str | None = None
  """The simulated client's data: a source."""
  test_data: str | None = None
  """The simulated client's test data: a source."""
  classes: tuple[str, ...] = ()
  """Names of folders or TFDS classes that are classes, in order of labels; or
  one word, `folders` or `numbers`: see `ecos_jax.config.classes`."""
  ground: Ground = Ground.WHITE
  """The colour on which transparent images are laid."""
  labelled_only: bool = False
  """Whether to leave out samples of no class; for benchmarks."""
  earlier: str | None = None
  """The `workdir` of a run whose pool had some of these samples: they are not
  encoded again."""
  exclude: str | None = None
  """A list of samples that are not chosen, such as those labelled before: the
  `index.csv` of a proxy, or a file with a key or an index a line."""
  dir: str | None = None
  """Where TFDS keeps its data; for a benchmark, the folder of its files."""
  benchmark: Benchmark = Benchmark.DIGITS
  """Which benchmark, without sources."""
  client: str = "usps"
  """Benchmark: the client's domain, or several: usps+mnist."""
  split: Split = Split.ID_OOD
  """Benchmark: whether part of the client's domain is in the pool, or none."""
  train_images: int = number(7438, "[1, inf)")
  """Digits: the most training images of a domain."""
  test_images: int = number(5000, "[1, inf)")
  """Digits: the most test images."""
  persons: int = number(1, "[1, inf)")
  """Digits: how many of the client's samples are of one person."""
  clients: int = number(1, "[1, 10000]")
  """Benchmark: among how many clients the client's samples are divided."""
  alpha: float = number(100.0, "(0, inf)")
  """Several clients: how alike they are, the concentration of the Dirichlet
  distribution of their classes and domains. 0.1: most have one class."""
  domain_alpha: float | None = number(None, "(0, inf)")
  """Several clients of several domains: the concentration of their domains,
  where it differs from that of the classes in each; None: `alpha`."""
  client_images: int = number(0, "[0, inf)")
  """Benchmark: samples of each client; 0: all, divided evenly."""


@dataclasses.dataclass
class Encoder:
  """The public feature extractor."""

  name: str = "hog_grey"
  """A name from `ecos_jax.encoders.registry`, or your own MODULE:FUNCTION."""
  batch_size: int = number(256, "[1, inf)")
  """Images that are encoded at once."""
  image_size: int | None = number(None, f"[1, {limits.MAX_IMAGE_SIZE}]")
  """Pretrained encoders only: image height and width; None: as trained."""
  weights: str | None = None
  """Pretrained encoders only: FILE (.safetensors, .pth) or hub:OWNER/NAME;
  None: the source that `ecos_jax.encoders.registry` names."""
  dtype: ComputeType = ComputeType.FLOAT32
  """Pretrained encoders only: the type to compute in."""


@dataclasses.dataclass
class Bank:
  """The feature bank on disk."""

  dtype: FeatureType = FeatureType.FLOAT16
  """The type of the stored features."""
  shard_rows: int = number(8192, "[1, inf)")
  """Features in one file."""


@dataclasses.dataclass
class Codebook:
  """k-means on the feature bank, and what the client is asked of it."""

  size: int = number(100, f"[1, {limits.MAX_CENTROIDS}]")
  """R, the number of centroids."""
  keep: bool = False
  """Whether to keep the centroids and directions of the run `data.earlier`, so
  that the client's answer to them stays good."""
  algorithm: Algorithm = Algorithm.LLOYD
  """Lloyd's on a sample, or mini-batch k-means on one pass over the bank."""
  first_round: int = number(0, f"[0, {limits.MAX_CENTROIDS}]")
  """Centroids of the first of two questions; 0: one question. The second asks
  about the rest of `size`, in the clusters where the client has votes."""
  sample_per_centroid: int = number(256, "[0, inf)")
  """Lloyd's: features to fit on, for each centroid; 0: all features."""
  iterations: int = number(50, "[1, inf)")
  """Lloyd's: the most iterations."""
  tolerance: float = number(1e-4, "[0, inf)")
  """Lloyd's: stop when the inertia falls by less than this share of it."""
  question: Question = Question.AUTO
  """Each sample votes for its nearest centroid (`counts`), or with a sign on
  the directions where it is farthest from the pool's mean (`signs`), or both.
  `auto` is `both` where the other fields allow it, and otherwise `counts`."""
  directions: int = number(64, f"[1, {limits.MAX_DIRECTIONS}]")
  """Signs: p, the number of directions; the length of a feature if shorter."""
  votes: int = number(32, f"[1, {limits.MAX_DIRECTIONS}]")
  """Signs: m, on how many of the directions a sample votes; p at most."""
  weight: int = number(3, f"[1, {limits.MAX_WEIGHT}]")
  """Both: what a vote for a centroid counts beside those on directions."""


@dataclasses.dataclass
class Privacy:
  """The privacy terms that the query proposes, and the simulated client uses.

  With `codebook.first_round` the client answers twice. Each answer then has
  more noise than `sigma`: both together cost as much as one with `sigma`.
  """

  sigma: float = number(10.0, _SIGMA)
  """Standard deviation of the noise on each vote count; where a sample has
  several votes, in units of their length."""
  gamma: float = number(0.8, _GAMMA)
  """Probability that a unit votes."""
  delta: float = number(1e-5, f"[{limits.MIN_DELTA}, {limits.MAX_DELTA}]")
  """Of (epsilon, delta)-differential privacy."""
  relation: Relation = Relation.ADD_REMOVE
  """Which data sets are neighbours."""
  unit: Unit = Unit.SAMPLE
  """What one neighbour has more or less: a sample, or a person with all samples
  of theirs; then each person votes with one sample, drawn at random."""
  insecure_noise_seed: int | None = number(None, "[0, inf)")
  """NOT PRIVATE, for tests and studies: seeds the noise, which otherwise is
  drawn from the operating system's entropy."""


@dataclasses.dataclass
class Sampling:
  """Choice of the proxy; the formulas are in docs/sampling.md.

  An answer about directions tells the density at every sample, which `likely`
  and `within` then use; `filter` and `estimate` are for counts alone.

  The method `ecos_paper` sets the fields from `filter` on as the paper does
  (`PAPER`), whatever they are here.
  """

  method: Method = Method.ECOS
  """How the proxy is chosen."""
  budget: int = number(1000, "[1, inf)")
  """B, the number of samples in the proxy."""
  groups: int = number(1, "[1, inf)")
  """Several clients: in how many groups of alike clients their answers are
  divided, if the noise allows it; 1: all answers make one proxy."""
  group: int = number(1, "[1, inf)")
  """Which of the groups this run makes a proxy for; 1 is the largest."""
  include: str | None = None
  """A list of samples, as in `data.exclude`, that are in the proxy in any case:
  the others are chosen to complete them."""
  filter: Filter = Filter.NONE
  """Which clusters get no quota."""
  threshold: float = number(1.0, "[0, inf)")
  """Filter `threshold`: the least score of a cluster, in multiples of sigma."""
  estimate: Estimate = Estimate.POSTERIOR
  """How the votes v of a cluster are estimated."""
  density_power: float | None = number(None, "[0, inf)")
  """a: a cluster of n samples gets a quota in proportion to v (v / n)^a; None:
  0 where the client votes on directions and not by class, and 0.5 otherwise."""
  classes: Classes = Classes.IGNORE
  """Labels by votes: the samples of each label are equally many (`balanced`),
  or in proportion to the client's classes (`client`), or this is ignored."""
  within: Within = Within.KCENTER
  """How samples are chosen inside a cluster."""
  likely: float = number(0.7, "(0, 1]")
  """Share of a cluster's samples to choose among: those where the client's
  samples are densest."""
  central: float = number(1.0, "(0, 1]")
  """Share of these samples to choose among: those nearest to the centroid."""

  def resolved(self) -> "Sampling":
    """Returns the options that the method runs with."""
    if self.method is Method.ECOS_PAPER:
      return dataclasses.replace(self, **PAPER)
    return self


# The paper outlines these; the threshold and the plain proportion are ours.
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
  """Training on the proxy."""

  task: Task = Task.MANUAL
  """Where the labels come from."""
  model: str = "convnet"
  """A name from `ecos_jax.models.networks`."""
  weights: str | None = None
  """Pretrained models only, as in `Encoder`; the last layer is always new."""
  image_size: int = number(28, "[1, inf)")
  """Image height and width."""
  steps: int = number(1500, "[0, inf)")
  """Training steps; 0: the run ends at the proxy."""
  batch_size: int = number(64, "[1, inf)")
  """Labelled images in a step, of all processes together."""
  learning_rate: float = number(2e-3, "(0, inf)")
  """The peak of the learning-rate schedule."""
  weight_decay: float = number(5e-4, "[0, inf)")
  """Decoupled weight decay, as in AdamW."""
  unlabelled_ratio: int = number(0, "[0, inf)")
  """FixMatch: unlabelled images for each labelled one; 0: supervised only."""
  unlabelled: Unlabelled = Unlabelled.ALL
  """FixMatch: the unlabelled images are `all` of the pool without a label;
  those in the `covered` clusters, the densest with 95 % of the client's votes;
  or the `abstained`, samples of the proxy that the client did not label."""
  confidence: float = number(0.95, "(0, 1]")
  """FixMatch: the least probability of a pseudo-label."""
  log_every: int = number(100, "[1, inf)")
  """Steps between two lines of metrics."""
  checkpoint_every: int = number(500, "[1, inf)")
  """Steps between two checkpoints."""


@dataclasses.dataclass
class Labelling:
  """Labels by the client, for `train.task=client`.

  With `votes` the question about directions is asked for each class, and the
  cloud labels the proxy by the answer: no second question, and no more epsilon.
  With `knn`, private kNN, the cloud asks about each sample of the proxy. For
  each request, a random subset of the client's samples is drawn, and the
  nearest of them vote for their class. If the largest vote count, with noise of
  `sigma_screen`, reaches `threshold`, the answer is the class with the most
  votes after noise of `sigma_vote` on each count. The defaults are for 5,000
  requests, of which 1,000 are answered for an epsilon of 5.
  """

  by: LabelledBy = LabelledBy.AUTO
  """Private kNN, or the signed votes of each class. `auto` is `votes` where the
  client is asked about directions, and otherwise `knn`."""
  certain: float = number(0.0, "[0, 1]")
  """Votes: the least probability of a label; other samples have none."""
  soft: bool = False
  """Votes: whether to train on the probabilities of all classes instead of the
  likeliest class."""
  neighbours: int = number(150, f"[1, {limits.MAX_SAMPLES}]")
  """k: the client's samples that vote on one request."""
  gamma: float = number(0.5, _GAMMA)
  """Probability that a sample takes part in a request."""
  sigma_screen: float = number(53.0, _SIGMA)
  """Noise on the largest vote count, which decides whether to answer."""
  sigma_vote: float = number(25.0, _SIGMA)
  """Noise on each vote count of an answer."""
  threshold: float = number(
    120.0, f"[-{limits.MAX_THRESHOLD}, {limits.MAX_THRESHOLD}]"
  )
  """The vote count that a request needs to be answered."""
  max_epsilon: float = number(5.0, "(0, inf)")
  """The most that all labels may cost, which decides how many are given. A
  remote client is not told this: it has a limit of its own."""


@dataclasses.dataclass
class Distill:
  """A teacher for `train.task=distill`; its student is `train.model`."""

  teacher: str = "convnet_large"
  """A name from `ecos_jax.models.networks`."""
  teacher_checkpoint: str | None = None
  """The folder `checkpoints/` of a run whose model is the teacher."""
  teacher_steps: int = number(1000, "[1, inf)")
  """Training steps of the teacher."""
  temperature: float = number(4.0, "(0, inf)")
  """T: teacher and student are compared after softmax(logits / T)."""


@dataclasses.dataclass
class Client:
  """Where the client runs."""

  remote: bool = False
  """Whether to stop after writing the query, and to go on at the next call once
  the responses lie in the workdir."""
  minimum: int = number(1, "[1, inf)")
  """Remote: how many clients must have answered before the answers are used."""


@dataclasses.dataclass
class Config:
  """Everything that determines a run, given the data."""

  seed: int = number(1, "[0, 4294967295]")
  """Seed of everything random but the client's noise."""
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
    """Returns whether the pool is of features, so that the run ends there."""
    specs = map(spec_lib.parse, self.data.sources)
    return any(isinstance(spec, spec_lib.Features) for spec in specs)

  def resolved(self) -> "Config":
    """Returns the configuration without `auto`."""
    question, by = self.codebook.question, self.labelling.by
    sampling = self.sampling
    both = (
      sampling.method is not Method.ECOS_PAPER
      and sampling.filter is Filter.NONE
      and sampling.estimate is Estimate.POSTERIOR
      and self.privacy.relation is Relation.ADD_REMOVE
      and not self.codebook.first_round
    )
    if question is Question.AUTO:
      question = Question.BOTH if both else Question.COUNTS
    if by is LabelledBy.AUTO:
      asked = sampling.method is Method.ECOS and question is not Question.COUNTS
      by = LabelledBy.VOTES if asked else LabelledBy.KNN
    return dataclasses.replace(
      self,
      codebook=dataclasses.replace(self.codebook, question=question),
      labelling=dataclasses.replace(self.labelling, by=by),
    )

  def to_json(self) -> str:
    """Returns the configuration as a JSON object of objects."""
    return json.dumps(
      dataclasses.asdict(self), indent=2, default=lambda member: member.value
    )

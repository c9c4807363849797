"""What a run came to: the fields of `summary.json`."""

import dataclasses

from ecos_jax import config
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import distillation
from ecos_jax.pipeline import grouping
from ecos_jax.pipeline import labelling
from ecos_jax.pipeline import learning
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline import selection
from ecos_jax.pipeline.stages import Job
from ecos_jax.pipeline.stages import percent
from ecos_jax.privacy import accounting
from ecos_jax.privacy import spending


@dataclasses.dataclass(frozen=True)
class Network:
  """A trained network.

  Attributes:
    name: The network.
    accuracy: Share of the client's test images that it classifies right.
    parameters: Number of weights.
    multiply_adds: Multiply-adds of one image.
  """

  name: str
  accuracy: float | None
  parameters: int
  multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Training:
  """The speed of the training of the model, in the call that ended it.

  Attributes:
    images_per_second: Images trained on in a second.
    input_wait_share: Share of the time that the loop waited for images.
  """

  images_per_second: float
  input_wait_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clients(spending.Clients):
  """What the clients answered to the last query; not who they are.

  Attributes:
    answered: Number of clients whose answers were used.
    signal: Share of the sum of the answers that chance does not explain.
    nearer: By how much the proxy is at least nearer to the clients' data than a
      random one.
    nearer_at_most: By how much at most. All three are estimates from the sum
      (`cloud.worth.Worth`), and null without a proxy.
    groups: Answers in each group of clients, the largest first: one group if
      the noise does not tell more apart, and none if none were asked for.
    group: The group whose answers made the proxy, from 1: `signal` and what
      follows it are about these.
  """

  answered: int
  signal: float | None
  nearer: float | None
  nearer_at_most: float | None
  groups: list[int] = dataclasses.field(default_factory=list)
  group: int = 1

  @property
  def gain(self) -> str:
    """What the answers tell of the proxy beside a random one, for people."""
    bounds = []
    if self.nearer:
      bounds.append(f"at least {percent(self.nearer)}")
    # More says next to nothing.
    if (most := self.nearer_at_most) is not None and most < 0.9:
      bounds.append(f"at most {percent(most)}")
    if not bounds:
      return (
        "too little to say by how much the proxy is nearer to the client than "
        "a random one"
      )
    return (
      f"the proxy is {' and '.join(bounds)} nearer to the client than a random "
      "one (mean votes, squared distance)"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary(spending.Spending):
  """What a run came to; null is what is not known, or what the run has not.

  Of a simulated client `epsilon` covers the whole ledger, also answers of
  earlier calls that were redone; of a remote one it covers this run. Of several
  clients it is that of the one that spent most.

  Attributes:
    method: How the proxy was chosen.
    client: The simulated client's domain, or its data.
    budget: Number of samples that the proxy was to have.
    seed: Of the run.
    unreadable: Files of the pool left out, listed in `pool/unreadable.txt`.
    others: Files of the pool that are no images by their names, by suffix.
    classes: Samples of each class in the pool, by name.
    accuracy: Of the model, on the client's test images.
    model: The model; null if the run ends at the proxy (0 steps, a pool of
      features, or no labels yet).
    teacher: The teacher, with distillation.
    proxy_size: Number of samples of the proxy.
    proxy_digest: sha256 of its sorted pool indices as little-endian int64.
    proxy_client_share: Share of the proxy from the client's domain.
    pool_client_share: Share of the pool from the client's domain.
    remote: Whether the client was another machine.
    clients: What the clients answered; null if none was asked.
    labels_asked: Samples that the client was asked to label.
    labels_considered: Those considered before its budget was used up.
    labels_answered: Those labelled.
    labels_accuracy: Share of the labels that are right.
    bytes_down: Sent from the cloud to the client.
    bytes_up: Sent from the client to the cloud.
    training: The speed of training.
    seconds: Of each stage, when it was done.
  """

  method: str
  client: str | None
  budget: int
  seed: int
  unreadable: int
  others: dict[str, int]
  classes: dict[str, int]
  accuracy: float | None
  model: Network | None
  teacher: Network | None
  proxy_size: int | None
  proxy_digest: str | None
  proxy_client_share: float | None
  pool_client_share: float | None
  remote: bool
  clients: Clients | None
  labels_asked: int | None
  labels_considered: int | None
  labels_answered: int | None
  labels_accuracy: float | None
  bytes_down: int
  bytes_up: int
  training: Training | None
  seconds: dict[str, float]


def collect(job: Job) -> Summary:
  """Returns what a run came to."""
  options = job.config
  pool, model = job[pooling.POOL], job.get(learning.MODEL)
  proxy, labels = job.get(selection.PROXY), job.get(labelling.LABELS)
  rounds = asking.rounds(options)
  down = [job.get(asked.query) for asked in rounds]
  up = [job.get(asked.response) for asked in rounds]
  return Summary(
    method=options.sampling.method.value,
    client=(
      options.data.client_data if options.data.sources else options.data.client
    ),
    budget=options.sampling.budget,
    seed=options.seed,
    unreadable=pool.unreadable,
    others=pool.others,
    classes=pool.classes,
    accuracy=model.accuracy if model else None,
    model=_network(options.train.model, model),
    teacher=_network(options.distill.teacher, job.get(distillation.TEACHER)),
    proxy_size=proxy.size if proxy else None,
    proxy_digest=proxy.digest if proxy else None,
    proxy_client_share=proxy.client_share if proxy else None,
    pool_client_share=pool.client_share,
    remote=options.client.remote,
    clients=_clients(job),
    **dataclasses.asdict(_spent(job)),
    labels_asked=labels.requests if labels else None,
    labels_considered=labels.considered if labels else None,
    labels_answered=labels.answered if labels else None,
    labels_accuracy=labels.accuracy if labels else None,
    bytes_down=_bytes(*down, job.get(labelling.REQUEST)),
    bytes_up=_bytes(*up, labels),
    training=_speed(model),
    seconds={
      name: round(stage.seconds, 3) for name, stage in job.stages.items()
    },
  )


def _clients(job: Job) -> Clients | None:
  if job.get(asking.LAST.response) is None:
    return None
  answers, proxy = job.read(asking.LAST.response), job.get(selection.PROXY)
  found = job.get(grouping.GROUPS)
  groups = found.sizes if found else []
  return Clients(
    **dataclasses.asdict(spending.of_clients(answers)),
    answered=len(answers),
    signal=proxy.signal if proxy else None,
    nearer=proxy.nearer if proxy else None,
    nearer_at_most=proxy.nearer_at_most if proxy else None,
    groups=groups,
    group=job.config.sampling.group if len(groups) > 1 else 1,
  )


def _bytes(*messages: asking.MessageResult | None) -> int:
  return sum(message.bytes for message in messages if message is not None)


def _network(
  name: str, result: distillation.NetworkResult | None
) -> Network | None:
  if result is None:
    return None
  return Network(name, result.accuracy, result.parameters, result.multiply_adds)


def _speed(model: learning.ModelResult | None) -> Training | None:
  # A call that found all steps done has measured nothing.
  if model is None or not model.images_per_second:
    return None
  return Training(model.images_per_second, model.input_wait_share)


def _spent(job: Job) -> spending.Spending:
  """Returns what the client's answers cost: this run's alone, and all of them.

  Of several clients, the answers that cost most count, since nobody knows which
  answers to two queries are of one client. An answer that was deleted is spent
  all the same.
  """
  answers: dict[str, spending.Answer] = {}
  fixed = True
  rounds = asking.rounds(job.config)
  for asked in rounds:
    if job.get(asked.response) is not None:
      first = asked is asking.FIRST
      response = max(job.read(asked.response), key=accounting.alone)
      answers["first" if first else "scores"] = response
      # A remote client may choose other terms for the second round, after its
      # first answer.
      taken, proposed = (
        dataclasses.asdict(terms).items()
        for terms in (
          response.statement,
          asking.terms(job.config, first=first),
        )
      )
      fixed &= len(rounds) == 1 or proposed <= taken
  if job.get(labelling.REQUEST) is not None:
    response = job.read(labelling.LABELS)
    answers["labels"] = response
    # The number of labels is that of the budget, unless the proxy came out
    # smaller: that tells of the scores.
    fixed &= len(response.labels) == job.config.sampling.budget
  return spending.spent(
    answers,
    job.client.entries(),
    fixed=fixed,
    exposed=job.config.sampling.method in config.SIMULATION_ONLY,
  )

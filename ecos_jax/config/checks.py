"""Whether a configuration can run, checked before anything starts."""

from collections.abc import Iterator
import dataclasses
import itertools
from typing import Any

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.config import classes
from ecos_jax.config import enums
from ecos_jax.config import spec


def validate(config: config_lib.Config) -> None:
  """Checks every field, and the fields that must fit together.

  Raises:
    ConfigError: All errors at once, each naming its fields.
  """
  config = config.resolved()
  rules = (
    range_errors,
    _round_errors,
    _question_errors,
    _source_errors,
    _labelling_errors,
    _unlabelled_errors,
    _list_errors,
    _kept_errors,
    _group_errors,
    _task_errors,
    _remote_errors,
  )
  _refuse(itertools.chain(*(rule(config) for rule in rules)))


def _refuse(found: Iterator[str]) -> None:
  if text := "; ".join(found):
    raise errors.ConfigError(text)


def range_errors(fields: Any, prefix: str = "") -> list[str]:
  """Returns which numbers lie outside of the intervals of their fields.

  Args:
    fields: A configuration or one of its groups.
    prefix: What to put before the names of its fields.
  """
  found = []
  for field in dataclasses.fields(fields):
    value = getattr(fields, field.name)
    if dataclasses.is_dataclass(value):
      found += range_errors(value, f"{prefix}{field.name}.")
    interval = field.metadata.get("interval")
    optional = value is None and field.default is None
    if interval and not optional and not _within(value, interval):
      found.append(
        f"`{prefix}{field.name}` must lie in {interval}, got {value}"
      )
  return found


def _within(value: object, interval: str) -> bool:
  """Returns whether a value is a number in an interval such as `(0, 1]`."""
  low, high = map(float, interval[1:-1].split(","))
  return (
    isinstance(value, int | float)
    # A NaN is in no interval.
    and low <= value <= high
    and not (value == low and interval[0] == "(")
    and not (value == high and interval[-1] == ")")
  )


def _task_errors(config: config_lib.Config) -> Iterator[str]:
  train = config.train
  if not train.steps and config.sampling.method is enums.Method.LOCAL:
    yield (
      "`train.steps`=0 ends at the proxy, and `sampling.method`=local has none"
    )
  if train.task is enums.Task.DISTILL and train.unlabelled_ratio:
    yield (
      "`train.unlabelled_ratio` is for labelled proxies: it must be 0 with "
      "`train.task`=distill"
    )


def _remote_errors(config: config_lib.Config) -> Iterator[str]:
  method = config.sampling.method
  if not config.client.remote:
    if config.client.minimum > 1:
      yield "`client.minimum` is for remote clients: give `client.remote`"
    return
  if method in enums.SIMULATION_ONLY:
    yield (
      f"`sampling.method`={method.value} reads the client's data, so it exists "
      "in simulation only: drop `client.remote`"
    )
  if config.data.clients > 1:
    yield "`data.clients` is for simulation: drop it or `client.remote`"
  if config.privacy.insecure_noise_seed is not None:
    yield (
      "`privacy.insecure_noise_seed` is for simulation: the remote client "
      "draws its own noise; drop it or `client.remote`"
    )


def _round_errors(config: config_lib.Config) -> Iterator[str]:
  book, method = config.codebook, config.sampling.method
  if not book.first_round:
    return
  asked = f"`codebook.first_round`={book.first_round}"
  if book.first_round >= book.size:
    yield f"{asked} leaves nothing of `codebook.size`={book.size}"
  if method not in enums.ASKING:
    yield f"{asked}: `sampling.method`={method.value} asks nothing"
  if (
    book.algorithm is not enums.Algorithm.LLOYD or not book.sample_per_centroid
  ):
    yield (
      f"{asked} needs `codebook.algorithm`=lloyd, and "
      "`codebook.sample_per_centroid`, 1 or more: the second round is fitted "
      "on a sample"
    )


def _question_errors(config: config_lib.Config) -> Iterator[str]:
  book = config.codebook
  if book.question is enums.Question.COUNTS:
    return
  asked = f"`codebook.question`={book.question.value}"
  if book.votes > book.directions:
    yield (
      f"`codebook.votes`={book.votes} must be at most `codebook.directions`="
      f"{book.directions}"
    )
  if config.privacy.relation is not enums.Relation.ADD_REMOVE:
    yield (
      f"{asked} needs `privacy.relation`=add_remove: for several votes no "
      "other bound is proven"
    )
  if config.sampling.method is enums.Method.ECOS_PAPER:
    yield f"{asked} needs `sampling.method`=ecos"
  if book.first_round:
    yield f"{asked}: `codebook.first_round` must be 0"
  yield from errors_with_directions(config.sampling)


def errors_with_directions(sampling: config_lib.Sampling) -> list[str]:
  """Returns which fields say nothing where votes on directions are known.

  Args:
    sampling: The rule. Its estimate and its filter are for counts alone.
  """
  pairs = {
    "estimate": (sampling.estimate, config_lib.Sampling.estimate),
    "filter": (sampling.filter, config_lib.Sampling.filter),
  }
  return [
    f"`sampling.{field}`={value.value} is for counts alone: with votes on "
    f"directions it must be {default.value}"
    for field, (value, default) in pairs.items()
    if value is not default
  ]


def _source_errors(config: config_lib.Config) -> list[str]:
  data = config.data
  if not data.sources:
    return [
      f"`data.{name}` is for a pool of your own: give `data.sources`"
      for name in ("client_data", "test_data", "classes", "labelled_only")
      if getattr(data, name)
    ]
  found = [
    f"`data.{name}` divides a benchmark: drop it or `data.sources`"
    for name, none in (("clients", 1), ("client_images", 0))
    if getattr(data, name) != none
  ]
  try:
    names = classes.named(data.classes)
  except errors.EcosError as error:
    return [str(error)]
  for name in ("sources", "client_data", "test_data"):
    texts = getattr(data, name)
    for text in (texts,) if isinstance(texts, str) else texts or ():
      try:
        with errors.about(f"data.{name}", text):
          spec.parse(text)
      except errors.EcosError as error:
        found.append(str(error))
  # What the sources are decides what else must fit.
  return found or list(_own_pool_errors(config, names))


def _own_pool_errors(
  config: config_lib.Config, names: tuple[str, ...]
) -> Iterator[str]:
  """Yields what does not fit a pool of one's own whose classes are `names`."""
  method = config.sampling.method
  by_client = config.train.task is enums.Task.CLIENT
  simulated = config.data.client_data is not None
  if simulated and config.client.remote:
    yield "`data.client_data` is for simulation: drop it or `client.remote`"
  needed = by_client or method in (*enums.ASKING, *enums.SIMULATION_ONLY)
  if needed and not simulated and not config.client.remote:
    yield (
      "there is no client: give `client.remote`=True, or `data.client_data` to "
      "simulate one"
    )
  if by_client and names in ((), classes.FOLDERS, classes.NUMBERS):
    yield "`data.classes` must name the client's classes: a,b,c"
  if config.of_features != (config.encoder.name == "identity"):
    yield (
      f"`encoder.name`={config.encoder.name}: a pool of features, and no "
      "other, needs identity"
    )
  if config.of_features and (
    config.train.task is not enums.Task.MANUAL or method is enums.Method.LOCAL
  ):
    yield (
      "a pool of features ends at the proxy: it needs `train.task`=manual, and "
      "no `sampling.method`=local"
    )


def _kept_errors(config: config_lib.Config) -> Iterator[str]:
  if config.codebook.keep and config.data.earlier is None:
    yield "`codebook.keep` needs `data.earlier`: whose codebook to keep"
  if config.codebook.keep and config.codebook.first_round:
    yield "`codebook.keep`: `codebook.first_round` must be 0"


def _list_errors(config: config_lib.Config) -> Iterator[str]:
  if config.sampling.method in (*enums.ASKING, enums.Method.RANDOM):
    return
  for name, path in (
    ("data.exclude", config.data.exclude),
    ("sampling.include", config.sampling.include),
  ):
    if path is not None:
      methods = "ecos, ecos_paper or random"
      yield f"`{name}`={path} needs `sampling.method`={methods}"


def _group_errors(config: config_lib.Config) -> Iterator[str]:
  groups, group = config.sampling.groups, config.sampling.group
  method = config.sampling.method
  if group > groups:
    yield f"`sampling.group`={group} must be at most `sampling.groups`={groups}"
  elif groups > 1 and method not in enums.ASKING:
    yield (
      f"`sampling.groups`={groups}: `sampling.method`={method.value} asks "
      "nothing"
    )
  elif not config.client.remote and config.data.clients < groups > 1:
    yield (
      f"`sampling.groups`={groups} needs as many clients: give `data.clients`"
    )


def _labelling_errors(config: config_lib.Config) -> Iterator[str]:
  method, classes = config.sampling.method, config.sampling.classes
  by_client = config.train.task is enums.Task.CLIENT
  by_votes = by_client and config.labelling.by is enums.LabelledBy.VOTES
  if classes is not enums.Classes.IGNORE and not (
    by_votes and config.train.steps
  ):
    yield (
      f"`sampling.classes`={classes.value} needs labels by votes: give "
      "`train.task`=client, `labelling.by`=votes and `train.steps`"
    )
  if by_client and config.privacy.relation is not enums.Relation.ADD_REMOVE:
    yield (
      "`privacy.relation` must be add_remove with `train.task`=client: for "
      "labels no other bound is proven, got "
      f"{config.privacy.relation.value}"
    )
  if by_votes and config.codebook.question is enums.Question.COUNTS:
    yield (
      "`labelling.by`=votes needs votes on directions: give "
      "`codebook.question`=both or signs"
    )
  elif by_votes and method is not enums.Method.ECOS:
    yield (
      "`labelling.by`=votes needs the client's answer, and `sampling.method`="
      f"{method.value} asks nothing"
    )
  if by_client and not by_votes and config.data.clients > 1:
    yield (
      "`labelling.by`=knn is for one client: give `labelling.by`=votes, or "
      "`data.clients`=1"
    )


def _unlabelled_errors(config: config_lib.Config) -> Iterator[str]:
  unlabelled, kinds = config.train.unlabelled, enums.Unlabelled
  method = config.sampling.method
  given = f"`train.unlabelled`={unlabelled.value}"
  if unlabelled is not kinds.ALL and not config.train.unlabelled_ratio:
    yield f"{given} needs FixMatch: give `train.unlabelled_ratio` of 1 or more"
  if unlabelled is kinds.COVERED and method not in enums.ASKING:
    yield (
      f"{given} needs the client's answer, and `sampling.method`="
      f"{method.value} asks nothing"
    )
  labelled = (
    config.train.task is enums.Task.CLIENT and method is not enums.Method.LOCAL
  )
  if unlabelled is kinds.ABSTAINED and not labelled:
    yield f"{given} needs labels by the client: `train.task`=client"


def check_pool(config: config_lib.Config, size: int) -> None:
  """Checks what depends on the number of samples in the pool.

  Raises:
    ConfigError: The budget or the codebook is larger than the pool.
  """
  _refuse(_pool_errors(config, size))


def _pool_errors(config: config_lib.Config, size: int) -> Iterator[str]:
  budget, centroids = config.sampling.budget, config.codebook.size
  method = config.sampling.method
  if method not in (enums.Method.ALL, enums.Method.LOCAL) and budget > size:
    yield (
      f"`sampling.budget`={budget} is larger than the pool of {size} samples"
    )
  if method in enums.ASKING and centroids > size:
    yield (
      f"`codebook.size`={centroids} is larger than the pool of {size} samples"
    )

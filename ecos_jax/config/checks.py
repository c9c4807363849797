"""Whether a configuration can run, checked before anything starts."""

import dataclasses
from typing import Any

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.config import classes
from ecos_jax.config import spec


def validate(config: config_lib.Config) -> None:
  """Checks every field, and the fields that must fit together.

  Raises:
    ConfigError: All errors at once, each naming its fields.
  """
  config = config.resolved()
  found = range_errors(config)
  found += _round_errors(config)
  found += _question_errors(config)
  found += _source_errors(config)
  found += _labelling_errors(config)
  found += _unlabelled_errors(config)
  found += _list_errors(config)
  found += _kept_errors(config)
  method = config.sampling.method
  if not config.train.steps and method is config_lib.Method.LOCAL:
    found.append(
      "`train.steps`=0 ends at the proxy, and `sampling.method`=local has none"
    )
  if (
    config.train.task is config_lib.Task.DISTILL
    and config.train.unlabelled_ratio
  ):
    found.append(
      "`train.unlabelled_ratio` is for labelled proxies: it must be 0 with "
      "`train.task`=distill"
    )
  found += _group_errors(config)
  if config.client.minimum > 1 and not config.client.remote:
    found.append("`client.minimum` is for remote clients: give `client.remote`")
  if config.client.remote:
    if method in config_lib.SIMULATION_ONLY:
      found.append(
        f"`sampling.method`={method.value} reads the client's data, so it "
        "exists in simulation only: drop `client.remote`"
      )
    if config.data.clients > 1:
      found.append(
        "`data.clients` is for simulation: drop it or `client.remote`"
      )
    if config.privacy.insecure_noise_seed is not None:
      found.append(
        "`privacy.insecure_noise_seed` is for simulation: the remote client "
        "draws its own noise; drop it or `client.remote`"
      )
  if found:
    raise errors.ConfigError("; ".join(found))


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


def _round_errors(config: config_lib.Config) -> list[str]:
  book, method = config.codebook, config.sampling.method
  if not book.first_round:
    return []
  round_flag = f"`codebook.first_round`={book.first_round}"
  found = []
  if book.first_round >= book.size:
    found.append(f"{round_flag} leaves nothing of `codebook.size`={book.size}")
  if method not in config_lib.ASKING:
    found.append(f"{round_flag}: `sampling.method`={method.value} asks nothing")
  if (
    book.algorithm is not config_lib.Algorithm.LLOYD
    or not book.sample_per_centroid
  ):
    found.append(
      f"{round_flag} needs `codebook.algorithm`=lloyd, and "
      "`codebook.sample_per_centroid`, 1 or more: the second round is "
      "fitted on a sample"
    )
  return found


def _question_errors(config: config_lib.Config) -> list[str]:
  book, found = config.codebook, []
  if book.question is config_lib.Question.COUNTS:
    return []
  asked = f"`codebook.question`={book.question.value}"
  if book.votes > book.directions:
    found.append(
      f"`codebook.votes`={book.votes} must be at most `codebook.directions`="
      f"{book.directions}"
    )
  if config.privacy.relation is not config_lib.Relation.ADD_REMOVE:
    found.append(
      f"{asked} needs `privacy.relation`=add_remove: for several votes no "
      "other bound is proven"
    )
  if config.sampling.method is config_lib.Method.ECOS_PAPER:
    found.append(f"{asked} needs `sampling.method`=ecos")
  if book.first_round:
    found.append(f"{asked}: `codebook.first_round` must be 0")
  return found + errors_with_directions(config.sampling)


def errors_with_directions(sampling: config_lib.Sampling) -> list[str]:
  """Returns which fields say nothing where votes on directions are known.

  Args:
    sampling: The rule. Its estimate and its filter are for counts alone.
  """
  found = []
  for field in ("estimate", "filter"):
    value, default = (
      getattr(sampling, field),
      getattr(config_lib.Sampling, field),
    )
    if value is not default:
      found.append(
        f"`sampling.{field}`={value.value} is for counts alone: with votes on "
        f"directions it must be {default.value}"
      )
  return found


def _source_errors(config: config_lib.Config) -> list[str]:
  data, method = config.data, config.sampling.method
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
  if found:
    return found
  if data.client_data is not None and config.client.remote:
    found.append(
      "`data.client_data` is for simulation: drop it or `client.remote`"
    )
  asks = method in (*config_lib.ASKING, *config_lib.SIMULATION_ONLY)
  asks |= config.train.task is config_lib.Task.CLIENT
  if data.client_data is None and asks and not config.client.remote:
    found.append(
      "there is no client: give `client.remote`=True, or "
      "`data.client_data` to simulate one"
    )
  if config.train.task is config_lib.Task.CLIENT and (
    names in ((), classes.FOLDERS, classes.NUMBERS)
  ):
    found.append("`data.classes` must name the client's classes: a,b,c")
  if config.of_features != (config.encoder.name == "identity"):
    found.append(
      f"`encoder.name`={config.encoder.name}: a pool of features, and "
      "no other, needs identity"
    )
  if config.of_features and (
    config.train.task is not config_lib.Task.MANUAL
    or method is config_lib.Method.LOCAL
  ):
    found.append(
      "a pool of features ends at the proxy: it needs "
      "`train.task`=manual, and no `sampling.method`=local"
    )
  return found


def _kept_errors(config: config_lib.Config) -> list[str]:
  if not config.codebook.keep:
    return []
  found = []
  if config.data.earlier is None:
    found.append("`codebook.keep` needs `data.earlier`: whose codebook to keep")
  if config.codebook.first_round:
    found.append("`codebook.keep`: `codebook.first_round` must be 0")
  return found


def _list_errors(config: config_lib.Config) -> list[str]:
  method = config.sampling.method
  if method in (*config_lib.ASKING, config_lib.Method.RANDOM):
    return []
  given = {
    "data.exclude": config.data.exclude,
    "sampling.include": config.sampling.include,
  }
  return [
    f"`{name}`={path} needs `sampling.method`=ecos, ecos_paper or random"
    for name, path in given.items()
    if path is not None
  ]


def _group_errors(config: config_lib.Config) -> list[str]:
  groups, group = config.sampling.groups, config.sampling.group
  if group > groups:
    return [
      f"`sampling.group`={group} must be at most `sampling.groups`={groups}"
    ]
  if groups == 1:
    return []
  method = config.sampling.method
  if method not in config_lib.ASKING:
    return [
      f"`sampling.groups`={groups}: `sampling.method`={method.value} asks "
      "nothing"
    ]
  if not config.client.remote and config.data.clients < groups:
    return [
      f"`sampling.groups`={groups} needs as many clients: give `data.clients`"
    ]
  return []


def _labelling_errors(config: config_lib.Config) -> list[str]:
  if config.train.task is not config_lib.Task.CLIENT:
    return []
  found = []
  if config.privacy.relation is not config_lib.Relation.ADD_REMOVE:
    found.append(
      "`privacy.relation` must be add_remove with "
      "`train.task`=client: for labels no other bound is proven, got "
      f"{config.privacy.relation.value}"
    )
  if (
    config.labelling.by is config_lib.LabelledBy.VOTES
    and config.codebook.question is config_lib.Question.COUNTS
  ):
    found.append(
      "`labelling.by`=votes needs votes on directions: give "
      "`codebook.question`=both or signs"
    )
  elif (
    config.labelling.by is config_lib.LabelledBy.VOTES
    and config.sampling.method is not config_lib.Method.ECOS
  ):
    found.append(
      "`labelling.by`=votes needs the client's answer, and "
      f"`sampling.method`={config.sampling.method.value} asks nothing"
    )
  if (
    config.labelling.by is config_lib.LabelledBy.KNN and config.data.clients > 1
  ):
    found.append(
      "`labelling.by`=knn is for one client: give `labelling.by`=votes, or "
      "`data.clients`=1"
    )
  return found


def _unlabelled_errors(config: config_lib.Config) -> list[str]:
  unlabelled, kinds = config.train.unlabelled, config_lib.Unlabelled
  given = f"`train.unlabelled`={unlabelled.value}"
  found = []
  if unlabelled is not kinds.ALL and not config.train.unlabelled_ratio:
    found.append(
      f"{given} needs FixMatch: give `train.unlabelled_ratio` of 1 or more"
    )
  if (
    unlabelled is kinds.COVERED
    and config.sampling.method not in config_lib.ASKING
  ):
    found.append(
      f"{given} needs the client's answer, and `sampling.method`="
      f"{config.sampling.method.value} asks nothing"
    )
  if unlabelled is kinds.ABSTAINED and (
    config.train.task is not config_lib.Task.CLIENT
    or config.sampling.method is config_lib.Method.LOCAL
  ):
    found.append(f"{given} needs labels by the client: `train.task`=client")
  return found


def check_pool(config: config_lib.Config, size: int) -> None:
  """Checks what depends on the number of samples in the pool.

  Raises:
    ConfigError: The budget or the codebook is larger than the pool.
  """
  found = []
  if config.sampling.budget > size and config.sampling.method not in (
    config_lib.Method.ALL,
    config_lib.Method.LOCAL,
  ):
    found.append(
      f"`sampling.budget`={config.sampling.budget} is larger than the "
      f"pool of {size} samples"
    )
  if (
    config.codebook.size > size and config.sampling.method in config_lib.ASKING
  ):
    found.append(
      f"`codebook.size`={config.codebook.size} is larger than the pool "
      f"of {size} samples"
    )
  if found:
    raise errors.ConfigError("; ".join(found))

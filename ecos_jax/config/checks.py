"""What a configuration must be, checked before anything starts.

All errors are collected and told at once, each naming its flag.
"""

import math

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.config import spec


def validate(config: config_lib.Config) -> None:
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
    "codebook.first_round",
    "codebook.tolerance",
    "codebook.sample_per_centroid",
    "sampling.threshold",
    "train.steps",
    "sampling.density_power",
    "train.weight_decay",
    "train.unlabelled_ratio",
    "distill.teacher_images",
  ]
  fields = config_lib.flatten(config)
  found = [
    f"`{name}` must be > 0, got {fields[name]}"
    for name in positive
    if not 0 < fields[name] < float("inf")
  ]
  found += [
    f"`{name}` must be >= 0, got {fields[name]}"
    for name in not_negative
    if not 0 <= fields[name] < float("inf")
  ]
  found += [
    f"`{name}` must lie in (0, 1], got {fields[name]}"
    for name in (
      "privacy.gamma",
      "sampling.likely",
      "sampling.central",
      "train.confidence",
      "labelling.gamma",
    )
    if not 0 < fields[name] <= 1
  ]
  if config.encoder.image_size is not None and not (
    0 < config.encoder.image_size <= config_lib.MAX_IMAGE_SIZE
  ):
    found.append(
      "`encoder.image_size` must lie in (0, "
      f"{config_lib.MAX_IMAGE_SIZE}], got "
      f"{config.encoder.image_size}"
    )
  found += _round_errors(config)
  found += _source_errors(config)
  found += _labelling_errors(config)
  if not 0 <= config.distill.hard_share <= 1:
    found.append(
      "`distill.hard_share` must lie in [0, 1], got "
      f"{config.distill.hard_share}"
    )
  if (
    not config.train.steps and config.sampling.method is config_lib.Method.LOCAL
  ):
    found.append(
      "`train.steps`=0 ends at the proxy, and `sampling.method`=local has none"
    )
  if (
    config.train.task is config_lib.Task.DISTILL
    and config.train.unlabelled_ratio
  ):
    found.append(
      "`train.unlabelled_ratio` is for labelled proxies: it must be 0 "
      "with `train.task`=distill"
    )
  found += [
    f"`{name}` must lie in (0, 1), got {fields[name]}"
    for name in (
      "privacy.delta",
      "privacy.first_part",
    )
    if not 0 < fields[name] < 1
  ]
  if config.seed >= 2**32:
    found.append(f"`seed` must be below 2^32, got {config.seed}")
  noise_seed = config.privacy.insecure_noise_seed
  if noise_seed is not None and noise_seed < 0:
    found.append(
      f"`privacy.insecure_noise_seed` must be >= 0 or None, got {noise_seed}"
    )
  if config.client.remote:
    if config.sampling.method in config_lib.SIMULATION_ONLY:
      found.append(
        f"`sampling.method`={config.sampling.method.value} knows the "
        "client's data, so it exists in simulation only: drop "
        "`client.remote`"
      )
    if noise_seed is not None:
      found.append(
        "`privacy.insecure_noise_seed` is for simulation: the remote "
        "client draws its own noise; drop the one or `client.remote`"
      )
  if found:
    raise errors.ConfigError("; ".join(found))


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


def _source_errors(config: config_lib.Config) -> list[str]:
  data, method = config.data, config.sampling.method
  if not data.sources:
    return [
      f"`data.{name}` is for a pool of your own: give `data.sources`"
      for name in ("client_data", "test_data", "classes", "labelled_only")
      if getattr(data, name)
    ]
  found = []
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
  if config.train.task is config_lib.Task.CLIENT and not data.classes:
    found.append("`data.classes` must name the client's classes")
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


def _labelling_errors(config: config_lib.Config) -> list[str]:
  found = []
  if not math.isfinite(config.labelling.threshold):
    found.append(
      f"`labelling.threshold` must be finite, got {config.labelling.threshold}"
    )
  if config.train.task is not config_lib.Task.CLIENT:
    return found
  if config.privacy.relation is not config_lib.Relation.ADD_REMOVE:
    found.append(
      "`privacy.relation` must be add_remove with "
      "`train.task`=client: for labels no other bound is proven, got "
      f"{config.privacy.relation.value}"
    )
  if (
    config.labelling.abstained_as_unlabelled
    and not config.train.unlabelled_ratio
  ):
    found.append(
      "`labelling.abstained_as_unlabelled` needs FixMatch: give "
      "`train.unlabelled_ratio`, 1 or more"
    )
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

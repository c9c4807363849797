"""Selective manual labelling on the multi-domain Digits benchmark.

The cloud has images of five digit domains and no labels; the client has images
of one domain. People label the proxy (here the benchmark's labels take their
place), and a small network is trained on it.

  python -m ecos_jax.train --config=configs/digits_manual.py \
    --workdir=runs/usps --config.data.dir=DIR --config.data.client=usps

Arguments, separated by commas: the client's domain, `demo` (embedded images,
minutes on two cores), `smoke` (seconds; for tests).

Results: docs/results.md, "Manual labelling" (configs/studies/sml_budgets.py and
others).
"""

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.data import digits


def get_config(
  arguments: str = "", others: tuple[str, ...] = ()
) -> config_lib.Config:
  """Returns the configuration.

  Args:
    arguments: Names separated by commas.
    others: Further names, which the caller handles.

  Raises:
    ConfigError: An unknown argument, with the valid ones.
  """
  config = config_lib.Config()
  for argument in filter(None, arguments.split(",")):
    if argument in digits.DOMAINS:
      config.data.client = argument
    elif argument == "demo":
      config.data.client = "optdigits"
      config.data.train_images = 3000
      config.data.test_images = 1000
      config.sampling.budget = 500
    elif argument == "smoke":
      config.data.client = "optdigits"
      config.data.train_images = 400
      config.data.test_images = 200
      config.codebook.size = 20
      config.codebook.iterations = 5
      config.privacy.sigma = 2.0
      config.sampling.budget = 64
      config.train.steps = 20
      config.train.batch_size = 16
      config.train.log_every = 5
      config.train.checkpoint_every = 10
    elif argument not in others:
      valid = ("demo", "smoke", *others, *digits.DOMAINS)
      raise errors.ConfigError(
        f"--config=...:{argument}: unknown argument; valid: {', '.join(valid)}"
      )
  return config

"""Selective manual labelling on the Icons benchmark: twelve themes of drawings.

The cloud has icons of twelve themes and no labels; the client has icons of one
theme. EfficientNet-Lite0 encodes content and style at 64 pixels, and the
same network is fine-tuned on the proxy.

  python -m ecos_jax.train --config=configs/icons_manual.py:papirus \
    --workdir=runs/papirus --config.data.dir=DIR

DIR is the folder of icons.npz: see `ecos_jax.data.icons`, also for the licences
of the drawings. The argument is the client's theme (oxygen if there is none),
or `smoke` (seconds; for tests).
"""

from ecos_jax import config as config_lib


def get_config(argument: str = "") -> config_lib.Config:
  """Returns the configuration.

  Args:
    argument: A theme, `smoke`, or nothing.
  """
  config = config_lib.Config()
  config.data.benchmark = config_lib.Benchmark.ICONS
  config.data.client = "oxygen" if argument in ("", "smoke") else argument
  config.encoder.name = "efficientnet_lite0_style"
  config.train.model = "efficientnet_lite0"
  config.encoder.image_size = config.train.image_size = 64
  config.privacy.sigma = 3.0
  config.sampling.budget = 500
  config.train.learning_rate = 5e-4
  if argument == "smoke":
    config.encoder.image_size = config.train.image_size = 32
    config.codebook.size = 8
    config.codebook.iterations = 5
    config.privacy.sigma = 0.5
    config.sampling.budget = 16
    config.train.steps = 0
  return config

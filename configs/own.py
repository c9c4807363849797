"""Selective manual labelling on a pool of your own.

  python -m ecos_jax.train --config=configs/own.py --workdir=runs/mine \
    --config.data.sources=folder:/my/images --config.client.remote=True

`sources` names one or several sources of the pool: `folder:DIR`,
`tfds:NAME:SPLIT`, `images:FILE.npz`, `webdataset:PATTERN`, `parquet:PATH`,
`hub:OWNER/NAME:SPLIT`. EfficientNet-Lite0 encodes the images. If
the pool has labels (--config.data.classes), the same network is fine-tuned on
the proxy; otherwise the run ends at the proxy, for you to label.

With the argument `features` the pool consists of features
(`features:PATH`), and the run ends at an index of rows.

The settings are a start: they were not tuned on any data.
"""

from ecos_jax import config as config_lib
from ecos_jax import errors


def get_config(argument: str = "") -> config_lib.Config:
  """Returns the configuration.

  Args:
    argument: `features`, or nothing.

  Raises:
    ConfigError: Another argument.
  """
  config = config_lib.Config()
  if argument == "features":
    config.encoder.name = "identity"
    return config
  if argument:
    raise errors.ConfigError(
      f"--config=...:{argument}: unknown argument; valid: features"
    )
  config.encoder.name = config.train.model = "efficientnet_lite0"
  config.encoder.image_size = config.train.image_size = 64
  config.train.learning_rate = 5e-4
  return config

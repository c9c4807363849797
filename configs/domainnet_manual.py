"""Selective manual labelling on DomainNet, ten classes, as in the paper.

The pool has five domains and half of the sixth; the other half is the client's.
The paper's ten classes are those of FedBN (Li et al., ICLR 2021); images of
other classes are left out.

  python -m ecos_jax.train --config=configs/domainnet_manual.py:real,1000 \
    --workdir=runs/real --config.data.dir=TFDS_DIR

Arguments, separated by commas: the client's domain, the budget (`1000` or
`3000`), and `folder=DIR` for the files of DomainNet's site, unpacked to
DIR/real/bird/... (and the other domains). The folder is split without the
official lists: of the client's domain, 40 % are the client's, 40 % the pool's
and 20 % the test's. Without `folder` the images come from TFDS
(`domainnet/*`), which needs TensorFlow to prepare them once.

The tests run this with made-up images, from a folder and in the place of TFDS.
It was never run on DomainNet itself: no accuracy is claimed. DomainNet's images
are for research, under the terms of its authors (Peng et al., ICCV 2019).

The encoder is ResNet-18 with torchvision's weights, by default from the hub
(extra `hub`), or `--config.encoder.weights=FILE`; the model is fine-tuned from
the same (`--config.train.weights`). sigma = 10 and R = 100 are the paper's; its
learning rates and steps are not known, and those here are not tuned.
"""

from ecos_jax import config as config_lib
from ecos_jax import errors

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
CLASSES = (
  *("bird", "feather", "headphones", "ice_cream", "teapot"),
  *("tiger", "whale", "windmill", "wine_glass", "zebra"),
)
_BUDGETS = ("1000", "3000")


def get_config(arguments: str = "") -> config_lib.Config:
  """Returns the configuration.

  Args:
    arguments: Names separated by commas.

  Raises:
    ConfigError: An unknown argument, with the valid ones.
  """
  chosen = list(filter(None, arguments.split(",")))
  valid = (*DOMAINS, *_BUDGETS, "folder=DIR")
  root = None
  for argument in chosen:
    if argument.startswith("folder="):
      root = argument.removeprefix("folder=")
    elif argument not in valid:
      raise errors.ConfigError(
        f"--config=...:{argument}: unknown argument; valid: {', '.join(valid)}"
      )
  client = next((a for a in chosen if a in DOMAINS), "real")
  config = config_lib.Config()
  data = config.data
  data.classes, data.labelled_only = CLASSES, True
  parts = {"client": "train[:50%]", "pool": "train[50%:]", "test": "test"}
  spec = "tfds:domainnet/{}:{}"
  whole = "train"
  if root is not None:
    parts = {"client": "[0%:40%]", "pool": "[40%:80%]", "test": "[80%:100%]"}
    spec, whole = f"folder:{root}/{{}}{{}}", ""
  data.sources = tuple(
    spec.format(domain, parts["pool"] if domain == client else whole)
    for domain in DOMAINS
  )
  data.client_data = spec.format(client, parts["client"])
  data.test_data = spec.format(client, parts["test"])
  config.encoder.name = config.train.model = "resnet18"
  config.train.image_size = 224
  config.train.learning_rate = 5e-4
  config.sampling.budget = 3000 if "3000" in chosen else 1000
  return config

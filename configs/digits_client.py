"""Automated client labelling on the multi-domain Digits benchmark.

The cloud has images of five digit domains and no labels; the client has
labelled images of one domain. It votes by class, and its one answer chooses the
proxy and labels it; a small network is trained on the labels. With
--config.labelling.by=knn the client is asked about each sample of the proxy
instead (Private-kNN), which the arguments `tight` and `paper` are about.

  python -m ecos_jax.train --config=configs/digits_client.py \
    --workdir=runs/usps --config.data.dir=DIR --config.data.client=usps

Arguments, separated by commas: the client's domain, `demo` (embedded images,
minutes on two cores), `smoke` (seconds; for tests), `tight` (half the epsilon),
`paper` (5,000 requests instead of 2,000).

Results: docs/results.md, "Labels by signed votes" (configs/studies/labels.py)
and "Automated client labelling" (configs/studies/acl.py, Private-kNN).
"""

from pathlib import Path
import runpy

from ecos_jax import config as config_lib

# By path: a configuration is read as a file, from any folder.
_MANUAL = runpy.run_path(str(Path(__file__).with_name("digits_manual.py")))


def get_config(arguments: str = "") -> config_lib.Config:
  """Returns the configuration.

  Args:
    arguments: Names separated by commas.

  Raises:
    ConfigError: An unknown argument, with the valid ones.
  """
  chosen = arguments.split(",")
  config = _MANUAL["get_config"](arguments, others=("tight", "paper"))
  config.train.task = config_lib.Task.CLIENT
  labelling = config.labelling
  if "paper" in chosen:
    config.sampling.budget = 5000
  else:
    config.sampling.budget *= 2
    labelling.sigma_screen, labelling.sigma_vote = 30.0, 19.0
    labelling.threshold = 100.0
  if "demo" in chosen:
    # With few private samples the client can afford fewer answers.
    labelling.neighbours = 60
    labelling.sigma_screen, labelling.sigma_vote = 24.0, 10.0
    labelling.threshold = 45.0
  if "smoke" in chosen:
    labelling.neighbours = 20
    labelling.sigma_screen, labelling.sigma_vote = 10.0, 5.0
    labelling.threshold = 10.0
  if "tight" in chosen:
    # Twice the noise, for the same number of answers.
    labelling.sigma_screen *= 2
    labelling.sigma_vote *= 2
    labelling.max_epsilon /= 2
  return config

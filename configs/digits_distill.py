"""Adaptive model compression on the multi-domain Digits benchmark.

The cloud has labelled images of five digit domains and trains a large teacher
on them; the client has images of one domain and room for a small student. The
student learns from the teacher's logits on the proxy, which needs no labels.

  python -m ecos_jax.train --config=configs/digits_distill.py \
    --workdir=runs/usps --config.data.dir=DIR --config.data.client=usps

Arguments, separated by commas: the client's domain, `demo` (embedded images,
minutes on two cores), `smoke` (seconds; for tests). Another run with the same
data and seed can reuse the teacher:
--config.distill.teacher_checkpoint=runs/usps/teacher/checkpoints.

Results: docs/results.md, "Adaptive model compression" (configs/studies/amc.py).
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
  config = _MANUAL["get_config"](arguments)
  config.train.task = config_lib.Task.DISTILL
  config.train.model = "convnet_small"
  config.sampling.budget *= 2
  chosen = arguments.split(",")
  if "demo" in chosen:
    config.distill.teacher_steps = 400
  if "smoke" in chosen:
    config.distill.teacher = "convnet"
    config.distill.teacher_steps = 20
  return config

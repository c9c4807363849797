"""Selective manual labelling on Digits: accuracy against the noise.

  python -m ecos_jax.study --config=configs/studies/sml_epsilon.py \
    --workdir=runs/sml_epsilon --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the Digits benchmark's files. The argument `smoke` is for
tests: embedded images, seconds.
"""

from pathlib import Path

from ecos_jax.data import digits
from ecos_jax.study import plan

_BASE = Path(__file__).parents[1] / "digits_manual.py"


def get_config(argument: str = "") -> plan.Study:
  """Returns the study.

  Args:
    argument: `smoke`, or nothing.

  Raises:
    ConfigError: Another argument.
  """
  smoke = plan.smoke(argument)
  clients = ("optdigits", "mnist") if smoke else digits.DOMAINS
  seeds = (1,) if smoke else (1, 2, 3)
  sigmas = (70.0, 55.0, 40.0, 25.0, 10.0, 5.0, 0.25)
  if smoke:
    sigmas = (1.0, 0.25)
  every = {"data.client": clients, "seed": seeds}
  study = plan.of(
    f"{_BASE}:{argument}",
    name="sml_epsilon",
    title="Manual labelling: accuracy against epsilon",
    about=_ABOUT,
    grids=(
      {"sampling.method": ("ecos",), "privacy.sigma": sigmas, **every},
      {"sampling.method": ("random",), **every},
    ),
    follow={"privacy.insecure_noise_seed": "seed"},
    tables=(
      plan.Table(
        "Mean over the clients",
        rows=("sampling.method", "privacy.sigma"),
        metrics=("epsilon", "accuracy", "share"),
        mean_over=("data.client",),
      ),
      plan.Table(
        "Accuracy in %, by client",
        rows=("sampling.method", "privacy.sigma"),
        columns="data.client",
        metrics=("accuracy",),
      ),
    ),
    plots=(
      plan.Plot(
        "accuracy",
        x="epsilon",
        y="accuracy",
        lines="sampling.method",
        mean_over=("data.client",),
        log_x=True,
      ),
      plan.Plot(
        "share",
        x="epsilon",
        y="share",
        lines="sampling.method",
        mean_over=("data.client",),
        log_x=True,
      ),
    ),
    labels={"privacy.sigma": {0.25: "none"}},
    paper="sml_epsilon",
  )
  study.train.steps = 2 if smoke else 1000
  if not smoke:
    study.train.batch_size = 32
  return study


_ABOUT = """
Budget 1,000, 1,000 steps of 32 images, split `id_ood`. Epsilon is exact, at
delta 1e-5, for one sample that is added or removed. "none" is sigma 0.25, the
smallest that the accounting takes: on average it changes one count of 1,500.
"""

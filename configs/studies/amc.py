"""Adaptive model compression on Digits.

  python -m ecos_jax.study --config=configs/studies/amc.py \
    --workdir=runs/amc --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the Digits benchmark's files. The argument `smoke` is for
tests: embedded images, seconds.
"""

from pathlib import Path

from ecos_jax.data import digits
from ecos_jax.study import plan

_BASE = Path(__file__).parents[1] / "digits_distill.py"


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
  study = plan.of(
    f"{_BASE}:{argument}",
    name="amc",
    title="Adaptive model compression",
    about=_ABOUT,
    grids=(
      {
        "data.client": clients,
        "sampling.method": ("ecos", "ecos_paper", "random", "kcenter"),
        "seed": seeds,
      },
    ),
    follow={"privacy.insecure_noise_seed": "seed"},
    tables=(
      plan.Table(
        "Mean over the clients",
        rows=("sampling.method",),
        metrics=("accuracy", "share", "teacher"),
        mean_over=("data.client",),
      ),
      plan.Table(
        "By client",
        rows=("data.client", "sampling.method"),
        metrics=("accuracy", "share", "teacher"),
      ),
    ),
    plots=(
      plan.Plot(
        "accuracy", x="data.client", y="accuracy", lines="sampling.method"
      ),
    ),
    paper="amc",
  )
  if smoke:
    study.train.steps = study.distill.teacher_steps = 2
  return study


_ABOUT = """
Budget 2,000, split `id_ood`. A `convnet_large` with 1.1 million weights teaches
a `convnet_small` with 6,418 weights for 1,500 steps. The proxy's labels are not
read. All methods of a client and seed share the same teacher. Epsilon of `ecos`
and `ecos_paper` is 0.276 at delta 1e-5.
"""

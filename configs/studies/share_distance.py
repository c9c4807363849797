"""Digits: how much like the client's data the proxy of each method is.

  python -m ecos_jax.study --config=configs/studies/share_distance.py \
    --workdir=runs/share_distance --config.data.dir=DIR --out=docs/results.md

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
  methods = ("ecos", "ecos_paper", "random", "kcenter", "mak")
  study = plan.of(
    f"{_BASE}:{argument}",
    name="share_distance",
    title="How similar the proxy and the client's data are",
    about=_ABOUT,
    grids=(
      {
        "data.split": ("id_ood",),
        "data.client": clients,
        "sampling.method": (*methods, "ideal"),
        "seed": seeds,
      },
      {
        "data.split": ("ood",),
        "data.client": clients,
        "sampling.method": methods,
        "seed": seeds,
      },
    ),
    follow={"privacy.insecure_noise_seed": "seed"},
    tables=(
      plan.Table(
        "Mean over the clients",
        rows=("data.split", "sampling.method"),
        metrics=("share", "distance"),
        mean_over=("data.client",),
      ),
      plan.Table(
        "By client",
        rows=("data.split", "data.client", "sampling.method"),
        metrics=("share", "distance"),
      ),
    ),
    plots=(
      plan.Plot(
        "share",
        x="data.client",
        y="share",
        lines="sampling.method",
        panels="data.split",
      ),
      plan.Plot(
        "distance",
        x="data.client",
        y="distance",
        lines="sampling.method",
        panels="data.split",
      ),
    ),
  )
  study.train.steps = 0
  return study


_ABOUT = """
Budget 1,000, no training. *Share* is the share of the proxy that comes from the
client's own domain. *MMD²* is the squared maximum mean discrepancy between the
features of the proxy and of the client, at most 2,000 of each, times 1,000. The
estimate is unbiased, so it can be negative. The kernel is exp(-|x - y|² / 2h²),
where h is the median distance between two of the client's samples. Only a
simulation can compute it, because it reads the client's data. `ideal` takes
random samples of the client's domain in the pool; `mak` sees the client's
features. Epsilon of `ecos` and `ecos_paper` is 0.276 at delta 1e-5.
"""

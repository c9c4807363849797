"""How similar the proxy and the client's data are on Digits, by method.

  python -m ecos_jax.study --config=configs/studies/share_distance.py \
    --workdir=runs/share_distance --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  every = digits.every(argument)
  methods = ("ecos", "ecos_paper", "random", "kcenter", "mak")
  metrics = ("share", "distance")
  return digits.study(
    __file__,
    argument,
    steps=0,
    title="How similar the proxy and the client's data are",
    about=_ABOUT,
    grids=(
      {
        "data.split": ("id_ood",),
        "sampling.method": (*methods, "ideal"),
        **every,
      },
      {"data.split": ("ood",), "sampling.method": methods, **every},
    ),
    tables=(
      digits.mean_over_clients(("data.split", "sampling.method"), metrics),
      plan.Table(
        "By client",
        rows=("data.split", "data.client", "sampling.method"),
        metrics=metrics,
      ),
    ),
    plots=tuple(
      plan.Plot(
        metric,
        x="data.client",
        y=metric,
        lines="sampling.method",
        panels="data.split",
      )
      for metric in metrics
    ),
  )


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

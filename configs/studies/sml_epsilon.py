"""Manual labelling on Digits: accuracy against epsilon.

  python -m ecos_jax.study --config=configs/studies/sml_epsilon.py \
    --workdir=runs/sml_epsilon --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan

_PAPER = plan.Quoted(
  "Accuracy in % against epsilon (read off a figure of DomainNet, so the level "
  "says nothing of Digits). That its sigma are those of the first row is our "
  "inference: they reproduce its epsilon by its bound, for a sample that is "
  "replaced; ours is exact, for one that is added or removed.",
  (
    ("sigma", "70", "55", "40", "25", "10", "5"),
    ("its epsilon", "0.0785", "0.101", "0.1385", "0.2245", "0.583", "1.229"),
    ("accuracy", "83.72", "83.80", "84.11", "84.47", "85.02", "85.17"),
  ),
)


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  smoke, every = digits.smoke(argument), digits.every(argument)
  sigmas = (70.0, 55.0, 40.0, 25.0, 10.0, 5.0, 0.25)
  if smoke:
    sigmas = (1.0, 0.25)
  rows = ("sampling.method", "privacy.sigma")
  return digits.study(
    __file__,
    argument,
    title="Manual labelling: accuracy against epsilon",
    about=_ABOUT,
    grids=(
      {"sampling.method": ("ecos",), "privacy.sigma": sigmas, **every},
      {"sampling.method": ("random",), **every},
    ),
    tables=(
      digits.mean_over_clients(rows, ("epsilon", "accuracy", "share")),
      *digits.by_client(rows, "accuracy"),
    ),
    plots=tuple(
      plan.Plot(
        metric,
        x="epsilon",
        y=metric,
        lines="sampling.method",
        mean_over=("data.client",),
        log_x=True,
      )
      for metric in ("accuracy", "share")
    ),
    labels={"privacy.sigma": {0.25: "none"}},
    paper=_PAPER,
  )


_ABOUT = """
Budget 1,000, 1,000 steps of 32 images, split `id_ood`. Epsilon is exact, at
delta 1e-5, for one sample that is added or removed. "none" is sigma 0.25, the
smallest that the accounting takes: on average it changes one count of 1,500.
"""

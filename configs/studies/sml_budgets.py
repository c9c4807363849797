"""Manual labelling on Digits: accuracy against the number of labels.

  python -m ecos_jax.study --config=configs/studies/sml_budgets.py \
    --workdir=runs/sml_budgets --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan

_PAPER = plan.Quoted(
  "Accuracy in %, mean over the clients (figure on label efficiency), with "
  "FixMatch on the rest of the pool, which ours does not use. "
  f"{digits.PAPER_SETTING}",
  (
    ("split", "method", "1,000", "2,000", "4,000", "8,000", "10,000"),
    ("id_ood", "ECOS", "70.4", "78.5", "83.5", "86.4", "87.1"),
    ("id_ood", "Random", "67.7", "74.5", "79.5", "83.3", "83.8"),
    ("id_ood", "K-Center", "61.1", "70.5", "78.7", "83.3", "84.5"),
    ("id_ood", "all-ID ideal", *["87.3"] * 5),
    ("ood", "ECOS", "60.4", "67.3", "73.6", "75.6", "76.0"),
    ("ood", "Random", "58.0", "64.1", "68.5", "71.4", "73.1"),
  ),
)


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  smoke, every = digits.smoke(argument), digits.every(argument)
  budgets = (64,) if smoke else (1000, 2000, 4000, 8000)
  methods = ("ecos", "random", "ecos_paper", "kcenter", "mak", "ideal")
  return digits.study(
    __file__,
    argument,
    title="Manual labelling: accuracy against the number of labels",
    about=_ABOUT,
    grids=(
      {
        "data.split": ("id_ood",),
        "sampling.method": methods,
        "sampling.budget": budgets,
        **every,
      },
      {
        "data.split": ("ood",),
        "sampling.method": ("ecos", "random"),
        "sampling.budget": budgets if smoke else (1000, 4000),
        **every,
      },
      {
        "data.split": ("id_ood", "ood"),
        "sampling.method": ("local",),
        **every,
      },
    ),
    tables=(
      plan.Table(
        "Accuracy in %, mean over the clients, by budget",
        rows=("data.split", "sampling.method"),
        columns="sampling.budget",
        metrics=("accuracy",),
        mean_over=("data.client",),
      ),
      plan.Table(
        "Accuracy in %, by client and budget",
        rows=("data.split", "data.client", "sampling.method"),
        columns="sampling.budget",
        metrics=("accuracy",),
      ),
    ),
    plots=(
      plan.Plot(
        "accuracy",
        x="sampling.budget",
        y="accuracy",
        lines="sampling.method",
        panels="data.split",
        mean_over=("data.client",),
        log_x=True,
      ),
    ),
    paper=_PAPER,
  )


_ABOUT = """
Supervised training on the proxy alone, 1,000 steps of 32 images. `ideal` takes
random samples of the client's own domain in the pool, which a cloud does not
know; where the pool has fewer than the budget (about 1,900 of optdigits, 3,650
of usps and the others), it takes all of them. `mak` sees the client's features.
`local` trains on the client's own labelled data: half of its domain with
`id_ood`, all of it with `ood`. Epsilon of `ecos` and `ecos_paper` is 0.276 at
delta 1e-5; `random`, `kcenter` and `ideal` ask the client nothing.
"""

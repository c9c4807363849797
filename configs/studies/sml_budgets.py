"""Selective manual labelling on Digits: accuracy against the number of labels.

  python -m ecos_jax.study --config=configs/studies/sml_budgets.py \
    --workdir=runs/sml_budgets --config.data.dir=DIR --out=docs/results.md

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
  budgets = (64,) if smoke else (1000, 2000, 4000, 8000)
  few = budgets if smoke else (1000, 4000)
  methods = ("ecos", "random", "ecos_paper", "kcenter", "mak", "ideal")
  every = {"data.client": clients, "seed": seeds}
  study = plan.of(
    f"{_BASE}:{argument}",
    name="sml_budgets",
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
        "sampling.budget": few,
        **every,
      },
      {
        "data.split": ("id_ood", "ood"),
        "sampling.method": ("local",),
        **every,
      },
    ),
    follow={"privacy.insecure_noise_seed": "seed"},
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
    paper="sml_budgets",
  )
  study.train.steps = 2 if smoke else 1000
  if not smoke:
    study.train.batch_size = 32
  return study


_ABOUT = """
Supervised training on the proxy alone, 1,000 steps of 32 images. `ideal` takes
random samples of the client's own domain in the pool, which a cloud does not
know; where the pool has fewer than the budget (about 1,900 of optdigits, 3,650
of usps and the others), it takes all of them. `mak` sees the client's features.
`local` trains on the client's own labelled data: half of its domain with
`id_ood`, all of it with `ood`. Epsilon of `ecos` and `ecos_paper` is 0.276 at
delta 1e-5; `random`, `kcenter` and `ideal` ask the client nothing.
"""

"""Digits: the paper's features and sampler, and what each change is worth.

  python -m ecos_jax.study --config=configs/studies/encoders.py \
    --workdir=runs/encoders --config.data.dir=DIR --out=docs/results.md

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
  every = {
    "data.client": ("optdigits", "mnist") if smoke else digits.DOMAINS,
    "seed": (1,) if smoke else (1, 2, 3),
  }
  budgets = (64, 65) if smoke else (1000, 2000)
  study = plan.of(
    f"{_BASE}:{argument}",
    name="encoders",
    title="Features and sampler, one at a time",
    about=_ABOUT,
    grids=(
      {
        "sampling.budget": budgets[:1],
        "encoder.name": ("hog", "hog_grey"),
        "sampling.method": ("ecos_paper", "ecos"),
        **every,
      },
      {
        "sampling.budget": budgets[1:],
        "encoder.name": ("hog",),
        "sampling.method": ("ecos_paper",),
        **every,
      },
      {
        "sampling.budget": budgets[1:],
        "encoder.name": ("hog_grey",),
        "sampling.method": ("ecos",),
        **every,
      },
    ),
    follow={"privacy.insecure_noise_seed": "seed"},
    tables=(
      plan.Table(
        "Mean over the clients",
        rows=("sampling.budget", "encoder.name", "sampling.method"),
        metrics=("accuracy", "share", "bytes_down"),
        mean_over=("data.client",),
      ),
      plan.Table(
        "Accuracy in %, by client",
        rows=("sampling.budget", "encoder.name", "sampling.method"),
        columns="data.client",
        metrics=("accuracy",),
      ),
      plan.Table(
        "Share in %, by client",
        rows=("sampling.budget", "encoder.name", "sampling.method"),
        columns="data.client",
        metrics=("share",),
      ),
    ),
  )
  study.train.steps = 2 if smoke else 1000
  if not smoke:
    study.train.batch_size = 32
  return study


_ABOUT = """
`hog` with `ecos_paper` is the paper's method; `hog_grey` with `ecos` is the
default. Steps and epsilon are as in "Manual labelling: accuracy against the
number of labels", split `id_ood`. *Share* is the share of the proxy that comes
from the client's own domain. *ECOS down* is the client's whole download in
bytes.
"""

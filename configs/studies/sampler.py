"""Digits: what each part of the sampler is worth, one changed at a time.

  python -m ecos_jax.study --config=configs/studies/sampler.py \
    --workdir=runs/sampler --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the Digits benchmark's files. The argument `smoke` is for
tests: embedded images, seconds.
"""

from pathlib import Path

from ecos_jax.data import digits
from ecos_jax.study import plan

_BASE = Path(__file__).parents[1] / "digits_manual.py"
_CHANGES = {
  "sampling.filter": ("threshold",),
  "sampling.estimate": ("score",),
  "sampling.density_power": (0.0, 1.0),
  "sampling.likely": (1.0,),
  "sampling.central": (0.8,),
  "sampling.within": ("random", "nearest"),
}


def get_config(argument: str = "") -> plan.Study:
  """Returns the study.

  Args:
    argument: `smoke`, or nothing.

  Raises:
    ConfigError: Another argument.
  """
  smoke = plan.smoke(argument)
  every = {
    "data.client": ("optdigits",) if smoke else digits.DOMAINS,
    "seed": (1,) if smoke else (1, 2, 3),
  }
  rows = ("sampling.method", *_CHANGES)
  study = plan.of(
    f"{_BASE}:{argument}",
    name="sampler",
    title="The sampler, one setting at a time",
    about=_ABOUT,
    grids=(
      {"sampling.method": ("ecos", "ecos_paper"), **every},
      *(
        {"sampling.method": ("ecos",), name: values, **every}
        for name, values in _CHANGES.items()
      ),
    ),
    follow={"privacy.insecure_noise_seed": "seed"},
    tables=(
      plan.Table(
        "Mean over the clients",
        rows=rows,
        metrics=("accuracy", "share", "distance"),
        mean_over=("data.client",),
      ),
      plan.Table(
        "Accuracy in %, by client",
        rows=rows,
        columns="data.client",
        metrics=("accuracy",),
      ),
      plan.Table(
        "Share in %, by client",
        rows=rows,
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
Each row changes one setting; empty fields are the defaults, so the row `ecos`
with empty fields is the default method. `ecos_paper` changes all settings but
`within` at once. [Sampling](sampling.md) has the formulas. Budget 1,000, 1,000
steps of 32 images, split `id_ood`, features `hog_grey`, epsilon 0.276 at delta
1e-5. *Share* and *MMD²* are as in "How similar the proxy and the client's data
are".
"""

"""The settings of the sampler on Digits, changed one at a time.

  python -m ecos_jax.study --config=configs/studies/sampler.py \
    --workdir=runs/sampler --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan

_CHANGES = {
  "sampling.filter": ("threshold",),
  "sampling.estimate": ("score",),
  "sampling.density_power": (0.0, 1.0),
  "sampling.likely": (1.0,),
  "sampling.central": (0.8,),
  "sampling.within": ("random", "nearest"),
}


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  every = digits.every(argument)
  rows = ("sampling.method", *_CHANGES)
  return digits.study(
    __file__,
    argument,
    title="The sampler, one setting at a time",
    about=_ABOUT,
    grids=(
      {"sampling.method": ("ecos", "ecos_paper"), **every},
      *(
        {"sampling.method": ("ecos",), name: values, **every}
        for name, values in _CHANGES.items()
      ),
    ),
    tables=(
      digits.mean_over_clients(rows, ("accuracy", "share", "distance")),
      *digits.by_client(rows, "accuracy", "share"),
    ),
  )


_ABOUT = """
Each row changes one setting; empty fields are the defaults, so the row `ecos`
with empty fields is the default method. `ecos_paper` changes all settings but
`within` at once. [Sampling](sampling.md) has the formulas. Budget 1,000, 1,000
steps of 32 images, split `id_ood`, features `hog_grey`, epsilon 0.276 at delta
1e-5. *Share* and *MMD²* are as in "How similar the proxy and the client's data
are".
"""

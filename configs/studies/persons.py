"""Persons as the unit of the guarantee, on Digits: accuracy and share.

  python -m ecos_jax.study --config=configs/studies/persons.py \
    --workdir=runs/persons --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax import config
from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  every = digits.every(argument)
  if not digits.smoke(argument):
    every["data.client"] = ("mnist_m",)
  rows = ("sampling.method", "privacy.sigma", "data.persons")
  study = digits.study(
    __file__,
    argument,
    title="Persons as the unit",
    about=_ABOUT,
    steps=300,
    grids=(
      {
        "sampling.method": ("ecos",),
        "privacy.unit": ("person",),
        "privacy.sigma": (10.0, 3.0),
        "data.persons": (1, 10, 50),
        **every,
      },
      {"sampling.method": ("random",), **every},
    ),
    tables=(
      plan.Table(
        "Samples of one person",
        rows=rows,
        metrics=("epsilon", "accuracy", "share"),
        mean_over=("data.client", "privacy.unit"),
      ),
    ),
  )
  study.codebook.question = config.Question.COUNTS
  return study


_ABOUT = """
Each of the client's persons has 1, 10 or 50 of its samples (3,719), drawn at
random, and one vote. Epsilon is for one person. Client `mnist_m`, budget
1,000, 300 steps of 32 images, split `id_ood`, delta 1e-5.
"""

"""FixMatch on Digits: which unlabelled images of the pool it should see.

  python -m ecos_jax.study --config=configs/studies/unlabelled.py \
    --workdir=runs/unlabelled --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax import config
from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  every = digits.every(argument)
  if not digits.smoke(argument):
    every["data.client"] = "usps", "mnist_m", "synthdigits"
    every["seed"] = 1, 2
  rows = ("train.unlabelled_ratio", "train.unlabelled")
  study = digits.study(
    __file__,
    argument,
    steps=500,
    title="FixMatch: the unlabelled images",
    about=_ABOUT,
    grids=(
      {"train.unlabelled_ratio": (0,), **every},
      {
        "train.unlabelled_ratio": (1,),
        "train.unlabelled": ("all", "covered"),
        **every,
      },
    ),
    tables=(
      digits.mean_over_clients(rows, ("accuracy", "share")),
      *digits.by_client(rows, "accuracy"),
    ),
  )
  study.codebook.question = config.Question.BOTH
  return study


_ABOUT = """
FixMatch adds an unlabelled image for each labelled one: of the whole pool but
the proxy, or of the covered clusters only, the densest with 95 % of the
client's votes; 0 is supervised training alone. 1,000 samples with their true
labels, 500 steps of 32 labelled images, split `id_ood`, sigma 10 (epsilon
0.276 at delta 1e-5).
"""

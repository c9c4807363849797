"""The default question on Digits: accuracy against the number of labels.

  python -m ecos_jax.study --config=configs/studies/budgets.py \
    --workdir=runs/budgets --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  budgets = (64,) if digits.smoke(argument) else (1000, 2000, 4000, 8000)
  some = (64,) if digits.smoke(argument) else (1000, 4000)
  rows = ("data.split", "sampling.method", "codebook.question")
  return digits.study(
    __file__,
    argument,
    title="The default question: accuracy against the number of labels",
    about=_ABOUT,
    grids=tuple(
      {
        "data.split": (split,),
        "sampling.method": ("ecos",),
        "codebook.question": ("auto",),
        "sampling.budget": numbers,
        **digits.every(argument),
      }
      for split, numbers in (("id_ood", budgets), ("ood", some))
    ),
    tables=(
      plan.Table(
        "Accuracy in %, mean over the clients, by budget",
        rows=rows,
        columns="sampling.budget",
        metrics=("accuracy",),
        mean_over=("data.client",),
      ),
      plan.Table(
        "Accuracy in %, by client and budget",
        rows=(*rows, "data.client"),
        columns="sampling.budget",
        metrics=("accuracy",),
      ),
    ),
  )


_ABOUT = """
As the first study, with the question and the quotas of today's default: signed
votes on 64 directions beside the counts of 100 centroids, in one answer for
epsilon 0.276, and quotas in proportion to the client's votes. The other methods
of the first study ask what they asked there: with `ood`, 1,000 and 4,000 labels
are 65.2 ± 1.1 and 69.6 ± 0.4 with its `ecos`, 60.6 ± 0.7 and 65.3 ± 0.5 with
`random`.
"""

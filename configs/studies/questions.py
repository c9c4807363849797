"""What the client is asked, on Digits: counts, signed votes, or both.

  python -m ecos_jax.study --config=configs/studies/questions.py \
    --workdir=runs/questions --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  every = digits.every(argument)
  rows = ("sampling.method", "codebook.question")
  return digits.study(
    __file__,
    argument,
    title="Counts, signed votes, or both",
    about=_ABOUT,
    grids=(
      {
        "sampling.method": ("ecos",),
        "codebook.question": ("both", "counts"),
        **every,
      },
      {
        "sampling.method": ("ecos_paper",),
        "codebook.question": ("counts",),
        **every,
      },
    ),
    tables=(
      digits.mean_over_clients(rows, ("epsilon", "accuracy", "share")),
      *digits.by_client(rows, "accuracy", "share"),
    ),
  )


_ABOUT = """
Supervised training on 1,000 chosen samples alone, 1,000 steps of 32 images,
split `id_ood`, sigma 10 and delta 1e-5. `both` asks for signed votes on 64
directions, 32 a sample, beside the counts of 100 centroids; `ecos` and
`ecos_paper` use the same features.
"""

"""Manual labelling on Digits: accuracy and the client's work against R.

  python -m ecos_jax.study --config=configs/studies/sml_centroids.py \
    --workdir=runs/sml_centroids --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan

_PAPER = plan.Quoted(
  "Accuracy in % against R (a figure of DomainNet). It finds that R = 10 "
  "equals fine-tuning the whole network at the client, with about 200 times "
  "fewer multiply-adds at the client.",
  (
    ("R", "10", "50", "100", "200", "300"),
    ("accuracy", "83.1", "89.2", "89.1", "88.5", "88.3"),
  ),
)


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  smoke, every = digits.smoke(argument), digits.every(argument)
  sizes = (5, 10) if smoke else (10, 30, 100, 300)
  steps = (2, 4) if smoke else (10, 30, 100, 300, 1000)
  rows = ("sampling.method", "codebook.size", "train.steps")
  return digits.study(
    __file__,
    argument,
    title="Manual labelling: accuracy and the client's work against R",
    about=_ABOUT,
    grids=(
      {"sampling.method": ("ecos",), "codebook.size": sizes, **every},
      {"sampling.method": ("local",), "train.steps": steps, **every},
    ),
    tables=(
      digits.mean_over_clients(
        rows,
        (
          *("accuracy", "share", "client_multiply_adds"),
          *("bytes_down", "bytes_up"),
        ),
      ),
      *digits.by_client(rows, "accuracy"),
    ),
    plots=(
      plan.Plot(
        "work",
        x="client_multiply_adds",
        y="accuracy",
        lines="sampling.method",
        mean_over=("data.client",),
        log_x=True,
      ),
    ),
    paper=_PAPER,
  )


_ABOUT = """
Budget 1,000, 1,000 steps of 32 images, split `id_ood`. With `ecos` the client's
multiply-adds are those of its votes: every sample against R centroids of 121
numbers. Its features are computed once, whatever R is, and are not counted;
they take some 12,000 multiplications per image. With `local` the client trains
the same network on its own labelled data, for few or many steps of 32 images,
each counted as three forward passes.
"""

"""The paper's features and sampler on Digits, changed one at a time.

  python -m ecos_jax.study --config=configs/studies/encoders.py \
    --workdir=runs/encoders --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  every = digits.every(argument)
  few, many = (64, 65) if digits.smoke(argument) else (1000, 2000)
  rows = ("sampling.budget", "encoder.name", "sampling.method")

  def grid(budget: int, encoders: tuple, methods: tuple) -> plan.Axes:
    values = ((budget,), encoders, methods)
    return dict(zip(rows, values, strict=True)) | every

  return digits.study(
    __file__,
    argument,
    title="Features and sampler, one at a time",
    about=_ABOUT,
    grids=(
      grid(few, ("hog", "hog_grey"), ("ecos_paper", "ecos")),
      grid(many, ("hog",), ("ecos_paper",)),
      grid(many, ("hog_grey",), ("ecos",)),
    ),
    tables=(
      digits.mean_over_clients(rows, ("accuracy", "share", "bytes_down")),
      *digits.by_client(rows, "accuracy", "share"),
    ),
  )


_ABOUT = """
`hog` with `ecos_paper` is the paper's method; `hog_grey` with `ecos` is the
default. Steps and epsilon are as in "Manual labelling: accuracy against the
number of labels", split `id_ood`. *Share* is the share of the proxy that comes
from the client's own domain. *ECOS down* is the client's whole download in
bytes.
"""

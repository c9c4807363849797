"""Asking once and asking twice on Digits, at equal epsilon and bytes.

  python -m ecos_jax.study --config=configs/studies/rounds.py \
    --workdir=runs/rounds --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  smoke, every = digits.smoke(argument), digits.every(argument)
  # Centroids of the first round, and of both: two rounds send two headers more.
  rounds = ((0, 20), (5, 16)) if smoke else ((0, 100), (10, 96))
  fields = "privacy.sigma", "codebook.first_round", "codebook.size"
  metrics = "share", "distance", "epsilon", "bytes_down", "bytes_up"
  return digits.study(
    __file__,
    argument,
    steps=0,
    title="Asking once and asking twice",
    about=_ABOUT,
    grids=tuple(
      {
        **every,
        "privacy.sigma": (2.0,) if smoke else (10.0, 25.0),
        "codebook.first_round": (first,),
        "codebook.size": (size,),
      }
      for first, size in rounds
    ),
    tables=(
      digits.mean_over_clients(fields, metrics),
      plan.Table("By client", rows=("data.client", *fields), metrics=metrics),
    ),
  )


_ABOUT = """
Budget 1,000, no training. With `codebook.first_round` = 10 the client is first
asked about 10 centroids, with a fifth of 1 / sigma², and then about 86 in the
clusters where it has votes. Both answers together cost no more than one
answer with the noise `privacy.sigma` (delta 1e-5, terms fixed beforehand). Four
centroids fewer pay for the headers of the second query and answer. *Share* and
*MMD²* are as in "How similar the proxy and the client's data are".
"""

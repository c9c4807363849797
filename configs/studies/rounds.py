"""Digits: one round of questions and two, at equal epsilon and bytes.

  python -m ecos_jax.study --config=configs/studies/rounds.py \
    --workdir=runs/rounds --config.data.dir=DIR --out=docs/results.md

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
  # Centroids of the first round, and of both: two rounds send two headers more.
  rounds = ((0, 20), (5, 16)) if smoke else ((0, 100), (10, 96))
  fields = "privacy.sigma", "codebook.first_round", "codebook.size"
  metrics = "share", "distance", "epsilon", "bytes_down", "bytes_up"
  study = plan.of(
    f"{_BASE}:{argument}",
    name="rounds",
    title="Asking once and asking twice",
    about=_ABOUT,
    grids=tuple(
      {
        "data.client": ("optdigits", "mnist") if smoke else digits.DOMAINS,
        "privacy.sigma": (2.0,) if smoke else (10.0, 25.0),
        "codebook.first_round": (first,),
        "codebook.size": (size,),
        "seed": (1,) if smoke else (1, 2, 3),
      }
      for first, size in rounds
    ),
    follow={"privacy.insecure_noise_seed": "seed"},
    tables=(
      plan.Table(
        "Mean over the clients",
        rows=fields,
        metrics=metrics,
        mean_over=("data.client",),
      ),
      plan.Table("By client", rows=("data.client", *fields), metrics=metrics),
    ),
  )
  study.train.steps = 0
  return study


_ABOUT = """
Budget 1,000, no training. With `codebook.first_round` = 10 the client is first
asked about 10 centroids, with a fifth of 1 / sigma², and then about 86 in the
clusters where it has votes. Both answers together cost no more than one
answer with the noise `privacy.sigma` (delta 1e-5, terms fixed beforehand). Four
centroids fewer pay for the headers of the second query and answer. *Share* and
*MMD²* are as in "How similar the proxy and the client's data are".
"""

"""Labels by signed votes: one answer chooses the proxy and labels it.

  python -m ecos_jax.study --config=configs/studies/labels.py \
    --workdir=runs/labels --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`. The
study `acl` has Private-kNN on the same clients, network and steps.
"""

from ecos_jax import config
from ecos_jax.study import digits
from ecos_jax.study import plan

_METRICS = ("epsilon", "accuracy", "share", "labels_right")


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  study = digits.study(
    __file__,
    argument,
    base="digits_client",
    steps=800,
    title="Labels by signed votes",
    about=_ABOUT,
    grids=(
      {
        "privacy.sigma": (0.5,) if digits.smoke(argument) else (10.0, 5.0),
        **digits.every(argument),
      },
    ),
    tables=(
      digits.mean_over_clients(("privacy.sigma",), _METRICS),
      plan.Table(
        "By client", rows=("data.client", "privacy.sigma"), metrics=_METRICS
      ),
    ),
  )
  study.labelling.by = config.LabelledBy.VOTES
  study.codebook.question = config.Question.BOTH
  return study


_ABOUT = """
2,000 samples are chosen and labelled by one answer: signed votes of each class
on 64 directions, beside the counts of 100 centroids. Nothing else is asked, and
epsilon covers both. Training takes 800 steps of 32 images, on all 2,000; split
`id_ood`, delta 1e-5. "Automated client labelling" has Private-kNN on the same
clients, network and steps, for epsilon 5.03. Quotas are in proportion to
v (v / n)^0.5, for v votes in a cluster of n. With
--config.sampling.density_power=0 accuracy is 67.2 ± 1.7 and 75.5 ± 0.7, and
55.0 and 68.1 % of the answers are right.
"""

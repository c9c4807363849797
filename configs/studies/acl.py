"""Automated client labelling on Digits.

  python -m ecos_jax.study --config=configs/studies/acl.py \
    --workdir=runs/acl --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax import config
from ecos_jax.study import digits
from ecos_jax.study import plan

_METRICS = ("accuracy", "share", "answered", "labels_right", "epsilon")
_PAPER = plan.Quoted(
  "Accuracy in %, mean over the clients, Digits, budget 5,000, epsilon 5.3; "
  "ours has 2,000 requests, and epsilon 5.0 for the labels. "
  f"{digits.PAPER_SETTING}",
  (
    ("ECOS", "K-Center", "Random"),
    ("69.0", "67.4", "65.9"),
  ),
)


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  study = digits.study(
    __file__,
    argument,
    base="digits_client",
    steps=800,
    title="Automated client labelling",
    about=_ABOUT,
    paper=_PAPER,
    **digits.by_method(argument, _METRICS),
  )
  study.labelling.by = config.LabelledBy.KNN
  return study


_ABOUT = """
The client is asked to label 2,000 samples by Private-kNN. Training takes 800
steps of 32 images, on the answered samples; split `id_ood`. Epsilon, at delta
1e-5, covers coverage and labels together for `ecos` and `ecos_paper`, and the
labels alone for the others. The labelling's settings were chosen on proxies of
`ecos` with seed 1, which favours it a little.
"""

"""Adaptive model compression on Digits.

  python -m ecos_jax.study --config=configs/studies/amc.py \
    --workdir=runs/amc --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan

_METRICS = ("accuracy", "share", "teacher")
_PAPER = plan.Quoted(
  "Accuracy in %, mean over the clients, DomainNet: the paper has no AMC on "
  "Digits, so only the order of the methods can be compared.",
  (
    ("budget", "ECOS", "K-Center", "Random"),
    ("1,000", "78.6", "70.8", "76.4"),
    ("3,000", "83.5", "78.1", "81.6"),
  ),
)


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  study = digits.study(
    __file__,
    argument,
    base="digits_distill",
    steps=None,
    title="Adaptive model compression",
    about=_ABOUT,
    paper=_PAPER,
    **digits.by_method(argument, _METRICS),
  )
  if digits.smoke(argument):
    study.train.steps = study.distill.teacher_steps = 2
  return study


_ABOUT = """
Budget 2,000, split `id_ood`. A `convnet_large` with 1.1 million weights teaches
a `convnet_small` with 6,418 weights for 1,500 steps. The proxy's labels are not
read. All methods of a client and seed share the same teacher. Epsilon of `ecos`
and `ecos_paper` is 0.276 at delta 1e-5.
"""

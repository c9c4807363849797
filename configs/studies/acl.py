"""Automated client labelling on Digits.

  python -m ecos_jax.study --config=configs/studies/acl.py \
    --workdir=runs/acl --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the Digits benchmark's files. The argument `smoke` is for
tests: embedded images, seconds.
"""

from pathlib import Path

from ecos_jax.data import digits
from ecos_jax.study import plan

_BASE = Path(__file__).parents[1] / "digits_client.py"


def get_config(argument: str = "") -> plan.Study:
  """Returns the study.

  Args:
    argument: `smoke`, or nothing.

  Raises:
    ConfigError: Another argument.
  """
  smoke = plan.smoke(argument)
  clients = ("optdigits", "mnist") if smoke else digits.DOMAINS
  seeds = (1,) if smoke else (1, 2, 3)
  study = plan.of(
    f"{_BASE}:{argument}",
    name="acl",
    title="Automated client labelling",
    about=_ABOUT,
    grids=(
      {
        "data.client": clients,
        "sampling.method": ("ecos", "ecos_paper", "random", "kcenter"),
        "seed": seeds,
      },
    ),
    follow={"privacy.insecure_noise_seed": "seed"},
    tables=(
      plan.Table(
        "Mean over the clients",
        rows=("sampling.method",),
        metrics=("accuracy", "share", "answered", "labels_right", "epsilon"),
        mean_over=("data.client",),
      ),
      plan.Table(
        "By client",
        rows=("data.client", "sampling.method"),
        metrics=("accuracy", "share", "answered", "labels_right", "epsilon"),
      ),
    ),
    plots=(
      plan.Plot(
        "accuracy", x="data.client", y="accuracy", lines="sampling.method"
      ),
    ),
    paper="acl",
  )
  study.train.steps = 2 if smoke else 800
  if not smoke:
    study.train.batch_size = 32
  return study


_ABOUT = """
The client is asked to label 2,000 samples by Private-kNN. Training takes 800
steps of 32 images, on the answered samples; split `id_ood`. Epsilon, at delta
1e-5, covers coverage and labels together for `ecos` and `ecos_paper`, and the
labels alone for the others. The labelling's settings were chosen on proxies of
`ecos` with seed 1, which favours it a little.
"""

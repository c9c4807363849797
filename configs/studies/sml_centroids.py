"""Manual labelling on Digits: what R buys, and what it costs the client.

  python -m ecos_jax.study --config=configs/studies/sml_centroids.py \
    --workdir=runs/sml_centroids --config.data.dir=DIR --out=docs/results.md

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
  clients = ("optdigits", "mnist") if smoke else digits.DOMAINS
  seeds = (1,) if smoke else (1, 2, 3)
  sizes = (5, 10) if smoke else (10, 30, 100, 300)
  steps = (2, 4) if smoke else (10, 30, 100, 300, 1000)
  every = {"data.client": clients, "seed": seeds}
  study = plan.of(
    f"{_BASE}:{argument}",
    name="sml_centroids",
    title="Manual labelling: accuracy and the client's work against R",
    about=_ABOUT,
    grids=(
      {"sampling.method": ("ecos",), "codebook.size": sizes, **every},
      {"sampling.method": ("local",), "train.steps": steps, **every},
    ),
    follow={"privacy.insecure_noise_seed": "seed"},
    tables=(
      plan.Table(
        "Mean over the clients",
        rows=("sampling.method", "codebook.size", "train.steps"),
        metrics=(
          "accuracy",
          "share",
          "client_multiply_adds",
          "bytes_down",
          "bytes_up",
        ),
        mean_over=("data.client",),
      ),
      plan.Table(
        "Accuracy in %, by client",
        rows=("sampling.method", "codebook.size", "train.steps"),
        columns="data.client",
        metrics=("accuracy",),
      ),
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
    paper="sml_centroids",
  )
  study.train.steps = 2 if smoke else 1000
  if not smoke:
    study.train.batch_size = 32
  return study


_ABOUT = """
Budget 1,000, 1,000 steps of 32 images, split `id_ood`. With `ecos` the client's
multiply-adds are those of its votes: every sample against R centroids of 121
numbers. Its features are computed once, whatever R is, and are not counted;
they take some 12,000 multiplications per image. With `local` the client trains
the same network on its own labelled data, for few or many steps of 32 images,
each counted as three forward passes.
"""

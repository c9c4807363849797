"""Real drawings: what the question is worth, by a linear classifier.

  python -m ecos_jax.study --config=configs/studies/icons.py \
    --workdir=runs/icons --config.data.dir=DIR --out=docs/results.md

DIR is the folder of icons.npz: see `ecos_jax.data.icons`.
"""

from ecos_jax.data import icons
from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  smoke = digits.smoke(argument)
  every = {
    "data.client": icons.THEMES[: 1 if smoke else None],
    "seed": (1,) if smoke else (1, 2, 3),
  }
  rows = (
    "privacy.sigma",
    "sampling.method",
    "codebook.question",
    "sampling.density_power",
  )
  asked = {
    "privacy.sigma": (0.5,) if smoke else (3.0, 10.0),
    "sampling.method": ("ecos",),
  }
  return digits.study(
    __file__,
    argument,
    base="icons_manual",
    steps=0,
    title="Icons: the question, by a linear classifier",
    about=_ABOUT,
    grids=(
      {
        **asked,
        "codebook.question": ("both",),
        "sampling.density_power": (0.0, 0.5),
        **every,
      },
      {
        **asked,
        "codebook.question": ("counts",),
        "sampling.density_power": (0.5,),
        **every,
      },
      {"sampling.method": ("random", "ideal"), **every},
    ),
    tables=(
      digits.mean_over_clients(rows, ("epsilon", "linear", "share")),
      *digits.by_client(rows, "linear", "share"),
    ),
  )


_ABOUT = """
Twelve themes of icons, eight classes, 500 samples, no training: *linear
accuracy* is that of ridge regression on the features of EfficientNet-Lite0 at
64 pixels, fitted to the proxy with its true labels and tested on the third of
the client's concepts that is in neither the pool nor the client. `ideal` takes
icons of the client's theme only; most pools have fewer than 500 of these. The
encoder is `efficientnet_lite0_style`.
"""

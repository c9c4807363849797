"""Several clients whose answers are added up, on Icons.

  python -m ecos_jax.study --config=configs/studies/clients_icons.py \
    --workdir=runs/clients_icons --config.data.dir=DIR --out=docs/results.md

DIR is the folder of icons.npz: see `ecos_jax.data.icons`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  smoke = digits.smoke(argument)
  many, size = (10, 1) if smoke else (30, 16)
  every: dict[str, tuple] = {
    "data.client": ("oxygen+papirus",) if smoke else THEMES,
    "seed": (1,) if smoke else (1, 2),
  }
  asked = every | {
    "sampling.method": ("ecos",),
    "codebook.question": ("both",),
    "privacy.sigma": (0.5,) if smoke else (3.0,),
  }

  def clients(number: int, images: int, *alpha: float) -> dict[str, tuple]:
    return {
      "data.clients": (number,),
      "data.client_images": (images,),
      "data.alpha": alpha,
    }

  rows = (
    *("sampling.method", "codebook.question", "privacy.sigma"),
    *("data.clients", "data.client_images", "data.alpha"),
  )
  return digits.study(
    __file__,
    argument,
    base="icons_manual",
    steps=0,
    title="Several clients, on Icons",
    about=_ABOUT,
    grids=(
      asked | clients(1, many * size, 100.0),
      *(asked | clients(number, size, 1.0) for number in (1, 5)),
      asked | clients(many, size, 100.0, 1.0, 0.1),
      asked | clients(many, size, 100.0) | {"privacy.sigma": (1.5,)},
      every | {"sampling.method": ("random",)} | clients(many, size, 0.1),
    ),
    tables=(
      digits.mean_over_clients(
        rows, ("epsilon", "linear", "mean_client", "worst_client", "signal")
      ),
      *digits.by_client(rows, "linear"),
    ),
  )


# Two of the larger themes at a time: 30 clients need 480 icons.
THEMES = ("papirus+numix", "oxygen+breeze", "faenza+obsidian")
_ABOUT = """
The icons of two themes are divided among 1, 5 or 30 clients of 16 icons each,
which answer at sigma 3 (1.5 in one row) and delta 1e-5; the answers are added
up. One client with 480 icons has those of all 30. *alpha* is the concentration
of the Dirichlet distribution from which each client draws its themes and
classes. 500 samples are chosen, and nothing is trained: *linear accuracy* is
that of ridge regression on features, as in "Icons: the question"; *mean client*
and *worst client* are the same on test icons with the themes and classes of
each client.
"""

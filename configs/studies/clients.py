"""Several clients whose answers are added up, on Digits.

  python -m ecos_jax.study --config=configs/studies/clients.py \
    --workdir=runs/clients --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  smoke = digits.smoke(argument)
  size = 6 if smoke else 120
  every: dict[str, tuple] = {
    "data.client": ("optdigits",) if smoke else _DOMAINS,
    "seed": (1,),
  }
  twice = {"seed": (1,) if smoke else (1, 2)}
  both, counts = (
    {"sampling.method": ("ecos",), "codebook.question": (question,)}
    for question in ("both", "counts")
  )
  random: dict[str, tuple] = {"sampling.method": ("random",)}

  def clients(number: int, images: int, *alpha: float) -> dict[str, tuple]:
    return {
      "data.clients": (number,),
      "data.client_images": (images,),
      "data.alpha": alpha,
      **every,
    }

  rows = (
    *("sampling.method", "codebook.question", "privacy.sigma"),
    *("data.clients", "data.client_images", "data.alpha"),
  )
  metrics = ("accuracy", "mean_client", "worst_client", "share", "signal")
  study = digits.study(
    __file__,
    argument,
    title="Several clients",
    about=_ABOUT,
    grids=(
      both | clients(1, 30 * size, 100.0) | twice,
      counts | clients(1, 30 * size, 100.0),
      *(both | clients(number, size, 1.0) for number in (1, 5)),
      both | clients(30, size, 100.0) | twice,
      both | clients(30, size, 1.0, 0.1),
      counts | clients(30, size, 100.0),
      both | clients(30, size, 100.0) | {"privacy.sigma": (5.0,)},
      both | clients(100, 30 * size // 100, 100.0, 0.1),
      random | clients(30, size, 0.1),
    ),
    tables=(
      digits.mean_over_clients(rows, ("epsilon", *metrics)),
      *digits.by_client(rows, "accuracy", "share"),
    ),
  )
  study.sampling.density_power = 0.5
  return study


# Those with more than 30 times 120 images for clients.
_DOMAINS = ("usps", "mnist", "mnist_m", "synthdigits")
_ABOUT = """
The images of a domain are divided among 1, 5, 30 or 100 clients. Each answers
at delta 1e-5 and the epsilon that the table shows (sigma 10; 5 in one row), and
the answers are added up. One client with 3,600 images has those of all 30: this
is also what 30 clients would reach if their sum had the noise of one.
*alpha* is the concentration of the Dirichlet distribution from which each
client draws its classes: with 100 they are alike, with 0.1 most have one class
or two. *Mean client* and *worst client* are accuracies on test images with the
classes of each client. *Signal* is the share of the squares of the sum's
numbers that noise does not explain; summaries measure the squared distance to
the pool's own votes instead. Quotas had a = 0.5. Budget 1,000, 1,000 steps of
32 images, split `id_ood`, seed 1, and seed 2 for two rows.
"""

"""Clients that differ: one proxy for all, or one for each group of clients.

  python -m ecos_jax.study --config=configs/studies/groups.py \
    --workdir=runs/groups --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax import config as config_lib
from ecos_jax.study import digits
from ecos_jax.study import plan


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  smoke = digits.smoke(argument)
  images, budget = (5, 16) if smoke else (400, 1000)
  told = {"data.client_images": (images,), "privacy.sigma": (5.0,)}
  hidden = {"data.client_images": (images // 4,), "privacy.sigma": (10.0,)}
  rows = (
    *("data.client_images", "privacy.sigma"),
    *("sampling.groups", "sampling.group", "sampling.budget"),
  )
  study = digits.study(
    __file__,
    argument,
    title="Clients that differ",
    about=_ABOUT,
    grids=(
      told | {"sampling.groups": (1,)},
      told | {"sampling.groups": (1,), "sampling.budget": (4 * budget,)},
      told | {"sampling.groups": (4,), "sampling.group": (1, 2, 3, 4)},
      hidden | {"sampling.groups": (4,)},
    ),
    tables=(
      plan.Table(
        "By group",
        rows=rows,
        metrics=("epsilon", "grouping", "members", "mean_client"),
      ),
    ),
  )
  study.codebook.question = config_lib.Question.BOTH
  study.data.client = "optdigits+mnist_m" if smoke else DOMAINS
  study.data.clients = 6 if smoke else 30
  study.data.domain_alpha = 0.1
  return study


DOMAINS = "usps+mnist+mnist_m+synthdigits"
_ABOUT = """
30 clients have images of four domains, most of them of one: the domains of each
are drawn from a Dirichlet distribution with concentration 0.1. With
`sampling.groups` = 4 a run finds the groups in the noised answers, and makes a
proxy of 1,000 images for one of them; with 1 there is one proxy for all, also
with the 4,000 images that the four have together. *Rand index* compares the
groups with the main domains of the clients (adjusted: 1 if they are the same, 0
if random). *Clients* is the number of those whose answers made the proxy, and
*mean client* is the accuracy on test images with the domains and classes of
each of these. In the last row the noise hides the groups: the run says so, and
makes one proxy for all. 1,000 steps of 32 images, split `id_ood`, seed 1.
"""

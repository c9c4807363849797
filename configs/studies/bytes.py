"""Digits: the bytes of the client's data, of the pool, and of ECOS.

  python -m ecos_jax.study --config=configs/studies/bytes.py \
    --workdir=runs/bytes --config.data.dir=DIR --out=docs/results.md

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
  study = plan.of(
    f"{_BASE}:{argument}",
    name="bytes",
    title="Bytes between cloud and client",
    about=_ABOUT,
    grids=({"data.client": clients, "seed": seeds[:1]},),
    follow={"privacy.insecure_noise_seed": "seed"},
    tables=(
      plan.Table(
        "Bytes, by client",
        rows=("data.client",),
        metrics=_FIGURES,
      ),
    ),
    paper="bytes",
  )
  study.train.steps = 0
  return study


_FIGURES = (
  "upload",
  "upload_files",
  "download",
  "download_files",
  "bytes_down",
  "bytes_up",
)
_ABOUT = """
The first columns are what would travel if the client uploaded its images, or
downloaded the pool, as pixels (28 x 28 x 3 bytes) or as PNG files. The last are
the two messages of ECOS, headers included, with R = 100 centroids of 121
numbers. Split `id_ood`, seed 1, no training.
"""

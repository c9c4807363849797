"""Bytes of the client's data, of the pool, and of ECOS, on Digits.

  python -m ecos_jax.study --config=configs/studies/bytes.py \
    --workdir=runs/bytes --config.data.dir=DIR --out=docs/results.md

DIR is the folder of the benchmark's files: see `ecos_jax.data.digits`.
"""

from ecos_jax.study import digits
from ecos_jax.study import plan

_PAPER = plan.Quoted(
  "Bytes, Digits. It counts images as float32, four bytes per channel; ours "
  f"are counted as the bytes that they are. {digits.PAPER_SETTING}",
  (
    ("upload", "download", "ECOS"),
    ("3.5e7", "3.1e8", "2.9e4"),
  ),
)


def get_config(argument: str = "") -> plan.Study:
  """Returns the study; `ecos_jax.study.digits` explains the argument."""
  clients = digits.every(argument)["data.client"]
  return digits.study(
    __file__,
    argument,
    steps=0,
    title="Bytes between cloud and client",
    about=_ABOUT,
    grids=({"data.client": clients, "seed": (1,)},),
    tables=(
      plan.Table(
        "Bytes, by client",
        rows=("data.client",),
        metrics=(
          *("upload", "upload_files", "download", "download_files"),
          *("bytes_down", "bytes_up"),
        ),
      ),
    ),
    paper=_PAPER,
  )


_ABOUT = """
The first columns are what would travel if the client uploaded its images, or
downloaded the pool, as pixels (28 x 28 x 3 bytes) or as PNG files. The last are
the two messages of ECOS, headers included, with R = 100 centroids of 121
numbers. Split `id_ood`, seed 1, no training.
"""

"""What the studies on the Digits benchmark have in common.

DIR in their commands is the folder of the benchmark's files. The argument
`smoke` makes a study small, for tests: embedded images, seconds.
"""

from pathlib import Path
from typing import Any

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.data import digits
from ecos_jax.study import plan

# How the paper's Digits differ from ours. What studies quote is from Hong, Lyu,
# Zhou, Spranger, "Outsourcing Training without Uploading Data via Efficient
# Collaborative Open-Source Sampling" (NeurIPS 2022, arXiv 2210.12575). What was
# read off a figure is good to about its last digit.
PAPER_SETTING = (
  "Its Digits are MNIST, **SVHN**, USPS, SynthDigits and MNIST-M. SVHN was not "
  "available here: UCI's optdigits take its place, and MNIST-M and SynthDigits "
  "are made again. The paper's networks, learning rates and epochs are not "
  "known. So compare the order and the gaps of the methods, not the level."
)


def smoke(argument: str) -> bool:
  """Returns whether the argument of a study file is `smoke`.

  Raises:
    ConfigError: It is neither `smoke` nor empty.
  """
  if argument not in ("", "smoke"):
    raise errors.ConfigError(
      f"--config=...:{argument}: unknown argument; valid: smoke"
    )
  return bool(argument)


def every(argument: str) -> dict[str, tuple]:
  """Returns the fields that all studies vary: the clients and the seeds."""
  if smoke(argument):
    return {"data.client": ("optdigits",), "seed": (1,)}
  return {"data.client": digits.DOMAINS, "seed": (1, 2, 3)}


def study(
  file: str,
  argument: str,
  *,
  base: str = "digits_manual",
  steps: int | None = 1000,
  **fields: Any,
) -> plan.Study:
  """Returns a study that is named for its file.

  Args:
    file: Path of the study's file.
    argument: `smoke`, or nothing.
    base: Name of the configuration file whose fields vary.
    steps: Training steps, of 32 images; None for those of `base`.
    **fields: Further fields of `plan.Study`.
  """
  path = Path(file)
  result = plan.of(
    f"{path.parents[1] / base}.py:{argument}",
    name=path.stem,
    **fields,
  )
  if not any("codebook.question" in grid for grid in fields["grids"]):
    # Studies of other things were run with it.
    result.codebook.question = config_lib.Question.COUNTS
  if steps is not None:
    result.train.steps = min(steps, 2) if smoke(argument) else steps
    if steps and not smoke(argument):
      result.train.batch_size = 32
  return result


def by_method(argument: str, metrics: tuple[str, ...]) -> dict[str, Any]:
  """Returns the grid, tables and plot of a study that compares methods.

  Args:
    argument: As in `study`.
    metrics: Columns of the tables.
  """
  methods = ("ecos", "ecos_paper", "random", "kcenter")
  return {
    "grids": ({**every(argument), "sampling.method": methods},),
    "tables": (
      mean_over_clients(("sampling.method",), metrics),
      plan.Table(
        "By client", rows=("data.client", "sampling.method"), metrics=metrics
      ),
    ),
    "plots": (
      plan.Plot(
        "accuracy", x="data.client", y="accuracy", lines="sampling.method"
      ),
    ),
  }


def mean_over_clients(
  rows: tuple[str, ...], metrics: tuple[str, ...]
) -> plan.Table:
  """Returns a table of means over the clients."""
  return plan.Table(
    "Mean over the clients",
    rows=rows,
    metrics=metrics,
    mean_over=("data.client",),
  )


def by_client(rows: tuple[str, ...], *metrics: str) -> list[plan.Table]:
  """Returns a table for each metric, with a column for each client."""
  return [
    plan.Table(
      f"{metric.capitalize()} in %, by client",
      rows=rows,
      columns="data.client",
      metrics=(metric,),
    )
    for metric in metrics
  ]

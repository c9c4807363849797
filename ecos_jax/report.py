"""What runs came to, side by side on the terminal.

python -m ecos_jax.report --workdir=DIR[,DIR...]
"""

import json
from pathlib import Path

from absl import flags

from ecos_jax import cli
from ecos_jax import errors
from ecos_jax.pipeline import summary as summary_lib

_WORKDIR = flags.DEFINE_list(
  "workdir", None, "Working directories of finished runs, separated by commas."
)


def read_summary(workdir: Path) -> dict:
  """Returns the summary of a finished run.

  Raises:
    EcosError: There is none.
  """
  path = workdir / "summary.json"
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    raise errors.EcosError(
      f"--workdir={workdir}: no summary.json there; run python -m "
      "ecos_jax.train to its end first"
    ) from None
  except ValueError:
    raise errors.EcosError(
      f"{path} is damaged: run python -m ecos_jax.train again to rewrite it"
    ) from None


def table(summaries: dict[str, dict]) -> str:
  """Returns the comparison of runs, one line a run.

  Args:
    summaries: The summary of each run, by the name to show.
  """
  rows = [
    (
      "run",
      "method",
      "accuracy",
      "proxy",
      "client's share",
      "epsilon",
      "bytes down",
      "bytes up",
    )
  ]
  for name, summary in summaries.items():
    epsilon = summary["epsilon"]
    rows.append(
      (
        name,
        summary["method"],
        summary_lib.percent(summary["accuracy"]),
        f"{summary['proxy_size'] or 0:,}",
        summary_lib.percent(summary["proxy_client_share"]),
        "not private" if epsilon is None else f"{epsilon:.4g}",
        f"{summary['bytes_down']:,}",
        f"{summary['bytes_up']:,}",
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if column < 2 else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def main(argv: list[str]) -> None:
  """Prints the table of the runs that --workdir names."""
  del argv
  if not _WORKDIR.value:
    raise errors.ConfigError("--workdir is missing: name one or more runs")
  print(table({path: read_summary(Path(path)) for path in _WORKDIR.value}))


if __name__ == "__main__":
  cli.run(main)

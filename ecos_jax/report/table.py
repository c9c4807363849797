"""A table of runs for the terminal."""

from ecos_jax import text_tables
from ecos_jax.pipeline import summary as summary_lib


def table(summaries: dict[str, summary_lib.Summary]) -> str:
  """Returns a table with a line for each run.

  Args:
    summaries: The summary of each run, by the name of the run.
  """
  rows = [
    (
      *("run", "method", "accuracy", "proxy", "client's share", "epsilon"),
      *("bytes down", "bytes up"),
    )
  ]
  for name, summary in summaries.items():
    epsilon = summary.epsilon
    rows.append(
      (
        name,
        summary.method,
        summary_lib.percent(summary.accuracy),
        f"{summary.proxy_size or 0:,}",
        summary_lib.percent(summary.proxy_client_share),
        "not private" if epsilon is None else f"{epsilon:.4g}",
        f"{summary.bytes_down:,}",
        f"{summary.bytes_up:,}",
      )
    )
  return text_tables.aligned(rows)

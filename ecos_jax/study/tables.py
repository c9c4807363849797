"""From the rows of cells to means and standard deviations, and to Markdown."""

from collections.abc import Iterable, Mapping, Sequence
import statistics as statistics_lib
from typing import Any, NamedTuple

from ecos_jax.study import figures
from ecos_jax.study import plan

Row = dict[str, Any]
Key = tuple[Any, ...]


class Statistic(NamedTuple):
  """A figure over seeds.

  Attributes:
    mean: Over the seeds.
    deviation: Of a sample (n - 1); None of one seed.
    seeds: How many count.
    planned: How many there should be.
  """

  mean: float
  deviation: float | None
  seeds: int
  planned: int


def statistics(
  study: plan.Study,
  rows: Iterable[Row],
  keys: Sequence[str],
  figure: str,
  mean_over: Sequence[str] = (),
) -> dict[Key, Statistic]:
  """Returns a figure for each combination of the values of some fields.

  For each seed the mean over `mean_over` is taken first; a seed for which a
  cell is missing, or has no such figure, is left out.

  Args:
    study: What the rows are of.
    rows: Of the cells that are done.
    keys: Fields. A cell whose grid does not vary one has None there.
    figure: A name in `figures.FIGURES`.
    mean_over: Fields.

  Raises:
    ValueError: Two cells have the same place.
  """
  planned: dict[Key, dict[int, set[Key]]] = {}
  for cell in study.cells():
    key, part = _place(cell.values, keys), _place(cell.values, mean_over)
    parts = planned.setdefault(key, {}).setdefault(cell.config.seed, set())
    if part in parts:
      raise ValueError(f"two cells have the same place, {key} {part}")
    parts.add(part)
  found: dict[Key, dict[int, dict[Key, float]]] = {}
  for row in rows:
    value = figures.FIGURES[figure].of(row)
    if value is not None:
      key, part = (_place(row["values"], names) for names in (keys, mean_over))
      seeds = found.setdefault(key, {})
      seeds.setdefault(row["config"]["seed"], {})[part] = value
  result = {}
  for key, seeds in planned.items():
    means = [
      statistics_lib.fmean(parts.values())
      for seed, parts in found.get(key, {}).items()
      if parts.keys() == seeds[seed]
    ]
    if means:
      # Exact: equal values have no deviation.
      deviation = statistics_lib.stdev(means) if len(means) > 1 else None
      result[key] = Statistic(
        statistics_lib.fmean(means), deviation, len(means), len(seeds)
      )
  return result


def _place(values: Mapping[str, Any], names: Sequence[str]) -> Key:
  return tuple(values.get(name) for name in names)


def order(study: plan.Study, name: str) -> list[Any]:
  """Returns the values of a field in the order of the grids."""
  return list(
    dict.fromkeys(v for grid in study.grids for v in grid.get(name, ()))
  )


def in_order(
  study: plan.Study, keys: Iterable[Key], names: Sequence[str]
) -> list[Key]:
  """Returns keys in the order of the grids; None comes last."""
  ranks = [
    {value: i for i, value in enumerate([*order(study, name), None])}
    for name in names
  ]
  return sorted(
    dict.fromkeys(keys),
    key=lambda key: [r[v] for r, v in zip(ranks, key, strict=True)],
  )


def text(figure: str, statistic: Statistic) -> str:
  """Returns '96.4 ± 0.3', the deviation left out where there is none."""
  write = figures.FIGURES[figure].text
  told = write(statistic.mean)
  if statistic.deviation:
    told += f" ± {write(statistic.deviation)}"
  if statistic.seeds < statistic.planned:
    told += f" ({statistic.seeds} of {statistic.planned} seeds)"
  return told


def label(study: plan.Study, name: str, value: Any) -> str:
  """Returns what is shown for a value of a field."""
  if value is None:
    return ""
  own = study.labels.get(name, {}).get(value)
  if own is not None:
    return own
  return f"{value:,}" if isinstance(value, int) else str(value)


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table; the first row is its head."""
  head, *body = rows
  return "\n".join(
    "| " + " | ".join(cells) + " |"
    for cells in (head, ["---"] * len(head), *body)
  )


def lines(
  study: plan.Study, table: plan.Table, rows: list[Row]
) -> list[list[str]]:
  """Returns a table's lines, the head first; absent values are empty."""
  columns = order(study, table.columns) if table.columns else [None]
  keys = [*table.rows, *filter(None, [table.columns])]
  found = {
    metric: statistics(study, rows, keys, metric, table.mean_over)
    for metric in table.metrics
  }
  head = [name.rpartition(".")[2] for name in table.rows]
  for column in columns:
    for metric in table.metrics:
      parts = []
      if table.columns:
        parts.append(label(study, table.columns, column))
      if len(table.metrics) > 1 or not table.columns:
        parts.append(figures.FIGURES[metric].label)
      head.append(" ".join(parts))
  places = {_place(cell.values, table.rows) for cell in study.cells()}
  names = {row["name"] for row in rows}
  lacking = {
    _place(cell.values, keys)
    for cell in study.cells()
    if cell.name not in names
  }
  result = [head]
  for place in in_order(study, places, table.rows):
    line = [
      label(study, *named) for named in zip(table.rows, place, strict=True)
    ]
    for column in columns:
      for metric in table.metrics:
        key = (*place, column) if table.columns else place
        # What does not vary over the columns stands in all of them.
        any_column = (*place, None) if table.columns else place
        own = found[metric].get(key, found[metric].get(any_column))
        if own is not None:
          line.append(text(metric, own))
        else:
          line.append("missing" if {key, any_column} & lacking else "")
    result.append(line)
  return result

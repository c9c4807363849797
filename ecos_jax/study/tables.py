"""Means and standard deviations of the rows of trials, and tables of them."""

from collections.abc import Iterable, Mapping, Sequence
import statistics as statistics_lib
from typing import Any, NamedTuple

from ecos_jax.study import metrics
from ecos_jax.study import plan

Row = dict[str, Any]
Key = tuple[Any, ...]


class Statistic(NamedTuple):
  """A metric over seeds.

  Attributes:
    mean: Mean over the seeds.
    deviation: Standard deviation of a sample (n - 1); None for one seed.
    seeds: Number of seeds that count.
    planned: Number of seeds in the study.
  """

  mean: float
  deviation: float | None
  seeds: int
  planned: int


def statistics(
  trials: Sequence[plan.Trial],
  rows: Iterable[Row],
  keys: Sequence[str],
  metric: str,
  mean_over: Sequence[str] = (),
) -> dict[Key, Statistic]:
  """Returns a metric for each combination of the values of some fields.

  For each seed the mean over `mean_over` is taken first; a seed is left out if
  one of its trials is missing or lacks the metric.

  Args:
    trials: All trials of the study; no two have the same place, which
      `Study.validate` checks.
    rows: Rows of the trials that are done.
    keys: Fields; a trial whose grid does not vary one has None there.
    metric: A name in `metrics.METRICS`.
    mean_over: Fields.
  """
  planned: dict[Key, dict[int, set[Key]]] = {}
  for trial in trials:
    key, part = _values(trial.values, keys), _values(trial.values, mean_over)
    seeds = planned.setdefault(key, {})
    seeds.setdefault(trial.config.seed, set()).add(part)
  found: dict[Key, dict[int, dict[Key, float]]] = {}
  for row in rows:
    value = metrics.METRICS[metric].of(row)
    if value is not None:
      key, part = (_values(row["values"], names) for names in (keys, mean_over))
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
      mean = statistics_lib.fmean(means)
      result[key] = Statistic(mean, deviation, len(means), len(seeds))
  return result


def _values(values: Mapping[str, Any], names: Sequence[str]) -> Key:
  return tuple(values.get(name) for name in names)


def in_order(
  study: plan.Study, keys: Iterable[Key], names: Sequence[str]
) -> list[Key]:
  """Returns keys in the order of the grids; None comes last."""
  ranks = [
    {value: i for i, value in enumerate([*study.order(name), None])}
    for name in names
  ]
  return sorted(
    dict.fromkeys(keys),
    key=lambda key: [r[v] for r, v in zip(ranks, key, strict=True)],
  )


def text(metric: str, statistic: Statistic) -> str:
  """Returns '96.4 ± 0.3'; without the deviation where there is none."""
  form = metrics.METRICS[metric].form
  written = format(statistic.mean, form)
  if statistic.deviation:
    written += f" ± {format(statistic.deviation, form)}"
  if statistic.seeds < statistic.planned:
    written += f" ({statistic.seeds} of {statistic.planned} seeds)"
  return written


def lines(
  study: plan.Study,
  trials: Sequence[plan.Trial],
  table: plan.Table,
  rows: Sequence[Row],
) -> list[list[str]]:
  """Returns the lines of a table, the head first; absent values are empty."""
  keys = [*table.rows, *filter(None, [table.columns])]
  found = {
    metric: statistics(trials, rows, keys, metric, table.mean_over)
    for metric in table.metrics
  }
  done = {row["name"] for row in rows}
  missing = {
    _values(trial.values, keys) for trial in trials if trial.name not in done
  }
  shown = [
    (column, metric)
    for column in (study.order(table.columns) if table.columns else [None])
    for metric in table.metrics
  ]
  head = [metrics.label(name) for name in table.rows]
  for column, metric in shown:
    parts = [study.label(table.columns, column)] if table.columns else []
    if len(table.metrics) > 1 or not table.columns:
      parts.append(metrics.METRICS[metric].label)
    head.append(" ".join(parts))
  result = [head]
  places = {_values(trial.values, table.rows) for trial in trials}
  for place in in_order(study, places, table.rows):
    line = list(map(study.label, table.rows, place))
    for column, metric in shown:
      # A trial without the columns' field stands in every column.
      options = [(*place, column), (*place, None)] if table.columns else [place]
      known = [found[metric][key] for key in options if key in found[metric]]
      absent = "missing" if missing.intersection(options) else ""
      line.append(text(metric, known[0]) if known else absent)
    result.append(line)
  return result

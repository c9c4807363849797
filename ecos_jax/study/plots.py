"""Pictures of a study: lines over numbers, bars over names; PNG and SVG.

Colours are those of Okabe and Ito, which people with any colour vision tell
apart; lines differ by marker and dash as well, bars by hatching.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import figure as figure_lib
from matplotlib import ticker

from ecos_jax.study import figures
from ecos_jax.study import plan
from ecos_jax.study import tables

_COLOURS = (
  *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
  *("#E69F00", "#56B4E9", "#000000", "#999999"),
)
_MARKERS = "osD^vP*X"
_DASHES = ("-", "--", "-.", ":")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "**")
# Inches, of a panel, of a name below its bars, of the legend.
_WIDTH, _NAME_WIDTH, _LEGEND_WIDTH = 4.2, 1.15, 1.4
_STYLE = {
  "axes.grid": True,
  "axes.grid.axis": "y",
  "axes.axisbelow": True,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "font.size": 11,
  "grid.alpha": 0.4,
  "hatch.linewidth": 0.6,
  "svg.fonttype": "none",
  "svg.hashsalt": "ecos_jax",
}


def draw(
  study: plan.Study, plot: plan.Plot, rows: list[tables.Row], folder: Path
) -> list[Path]:
  """Draws a plot; returns the files, none if there is nothing to show.

  Args:
    study: What the rows are of.
    plot: What to draw.
    rows: Of the cells that are done.
    folder: Where to.
  """
  points = _points(study, plot, rows)
  if not points:
    return []
  panels = tables.in_order(study, [(p,) for p, *_ in points], [_panel(plot)])
  with matplotlib.rc_context(_STYLE):
    wide = _NAME_WIDTH * len({x for *_, x, _ in points if isinstance(x, str)})
    width = max(_WIDTH, wide) * len(panels) + _LEGEND_WIDTH
    figure = figure_lib.Figure((width, 4.2))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (panel,) in zip(axes, panels, strict=True):
      own = [rest for p, *rest in points if p == panel]
      _panel_of(study, plot, axis, own)
      if len(panels) > 1:
        axis.set_title(tables.label(study, _panel(plot), panel))
    axes[0].set_ylabel(figures.FIGURES[plot.y].label)
    named: dict[str, Any] = {}
    for axis in axes:
      for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
        named.setdefault(name, handle)
    # matplotlib would put level lines before all others.
    shown = [
      tables.label(study, plot.lines, value)
      for value in [*tables.order(study, plot.lines), None]
    ]
    legend = [name for name in shown if name in named]
    figure.legend(
      [named[name] for name in legend],
      legend,
      loc="center right",
      frameon=False,
    )
    figure.tight_layout(rect=(0, 0, 1 - _LEGEND_WIDTH / width, 1))
    files = [folder / f"{plot.name}.{kind}" for kind in ("svg", "png")]
    figure.savefig(files[0], metadata={"Date": None})
    figure.savefig(files[1], dpi=150)
  return files


def _panel(plot: plan.Plot) -> str:
  return plot.panels or plot.lines


def _points(
  study: plan.Study, plot: plan.Plot, rows: list[tables.Row]
) -> list[tuple[Any, Any, Any, tables.Statistic]]:
  """Returns (panel, line, x, statistic of y) of every point."""
  varied = {name for grid in study.grids for name in grid}
  keys = sorted(varied - set(plot.mean_over) - {plan.REPEATED})
  found = tables.statistics(study, rows, keys, plot.y, plot.mean_over)
  where = {}
  if plot.x in figures.FIGURES:
    where = tables.statistics(study, rows, keys, plot.x, plot.mean_over)
  points = []
  for key, y in found.items():
    values = dict(zip(keys, key, strict=True))
    x = where[key].mean if key in where else values.get(plot.x)
    if x == 0 and plot.log_x:
      x = None
    panel = values.get(plot.panels) if plot.panels else None
    points.append((panel, values.get(plot.lines), x, y))
  return points


def _panel_of(
  study: plan.Study, plot: plan.Plot, axis: Any, points: Sequence[Any]
) -> None:
  names = tables.order(study, plot.lines)
  numbers = all(not isinstance(x, str) for _, x, _ in points)
  present = [n for n in [*names, None] if any(n == line for line, *_ in points)]
  for i, name in enumerate(present):
    own = [(x, y) for line, x, y in points if line == name]
    style = (names.index(name) if name in names else len(names)) % len(_COLOURS)
    shown = tables.label(study, plot.lines, name)
    if numbers:
      _line(axis, own, style, shown)
    else:
      _bars(study, plot, axis, own, style, shown, i, len(present))
  if numbers:
    axis.set_xlabel(_x_label(plot))
    if plot.log_x:
      axis.set_xscale("log")
    if plot.x not in figures.FIGURES:
      ticks = sorted({x for _, x, _ in points if x is not None})
      axis.set_xticks(ticks, [tables.label(study, plot.x, t) for t in ticks])
      axis.xaxis.set_minor_locator(ticker.NullLocator())


def _x_label(plot: plan.Plot) -> str:
  if plot.x in figures.FIGURES:
    return figures.FIGURES[plot.x].label
  return plot.x.rpartition(".")[2]


def _line(
  axis: Any, own: list[tuple[Any, tables.Statistic]], style: int, name: str
) -> None:
  colour = _COLOURS[style]
  dash = _DASHES[style % len(_DASHES)]
  level = [y for x, y in own if x is None]
  if level:  # it does not depend on x, or lies beyond the axis
    axis.axhline(level[0].mean, color=colour, linestyle=dash, label=name)
    return
  own = sorted(own, key=lambda point: point[0])
  axis.errorbar(
    [x for x, _ in own],
    [y.mean for _, y in own],
    [y.deviation or 0 for _, y in own],
    color=colour,
    marker=_MARKERS[style],
    linestyle=dash,
    capsize=3,
    label=name,
  )


def _bars(
  study: plan.Study,
  plot: plan.Plot,
  axis: Any,
  own: list[tuple[Any, tables.Statistic]],
  style: int,
  name: str,
  i: int,
  count: int,
) -> None:
  places = tables.order(study, plot.x)
  width = 0.8 / count
  axis.bar(
    [places.index(x) + (i - (count - 1) / 2) * width for x, _ in own],
    [y.mean for _, y in own],
    width,
    yerr=[y.deviation or 0 for _, y in own],
    color=_COLOURS[style],
    edgecolor="white",
    hatch=_HATCHES[style],
    error_kw={"elinewidth": 1},
    label=name,
  )
  axis.set_xticks(
    range(len(places)), [tables.label(study, plot.x, p) for p in places]
  )

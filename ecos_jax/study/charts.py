"""Charts of a study as SVG: a metric over numbers, or over names.

Colours are those of Okabe and Ito, which people with any colour vision can
tell apart; lines differ by marker and dashes as well.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ecos_jax import svg
from ecos_jax.study import metrics
from ecos_jax.study import plan
from ecos_jax.study import tables

_MARKERS = (
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # circle
  "M-3.5-3.5h7v7h-7z",  # square
  "M0-5.5 5.5 0 0 5.5-5.5 0z",  # diamond
  "M0-5 5 4h-10z",  # triangle
  "M0 5 5-4h-10z",  # triangle upside down
  "M-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",  # plus
  "M0-6 1.5-2 5.7-2 2.4.7 3.5 4.9 0 2.4-3.5 4.9-2.4.7-5.7-2-1.5-2z",  # star
  "M-5-3-3-5 0-2 3-5 5-3 2 0 5 3 3 5 0 2-3 5-5 3-2 0z",  # cross
)
_COLOURS = (
  *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
  *("#e69f00", "#56b4e9", "#000000", "#999999"),
)
_DASHES = ("none", "8 4", "10 3 2 3", "2 3")
_STYLE = """
rect { fill: #fff }
text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #333 }
.end { text-anchor: end } .middle { text-anchor: middle }
.title { text-anchor: middle; font-size: 13px }
.grid { stroke: #ddd } .axis { stroke: #333 }
.marker { fill: currentColor } .deviation { stroke: currentColor }
.line { fill: none; stroke: currentColor; stroke-width: 1.8 }
""" + "".join(
  f".c{i} {{ color: {colour}; stroke-dasharray: {_DASHES[i % len(_DASHES)]} }}\n"
  f".c{i} .deviation {{ stroke-dasharray: none }}\n"
  for i, colour in enumerate(_COLOURS)
)
# Pixels.
_LEFT, _TOP, _BOTTOM, _HEIGHT, _GAP = 64, 28, 46, 330, 24
_PANEL, _NAME, _LETTER = 330, 84, 7


class _Point(NamedTuple):
  """A point; `x` is None where it does not depend on x: a level."""

  panel: Any
  line: Any
  x: Any
  y: tables.Statistic


def draw(
  study: plan.Study,
  trials: Sequence[plan.Trial],
  plot: plan.Plot,
  rows: Sequence[tables.Row],
) -> bytes | None:
  """Returns a plot as an SVG file; None if there is nothing to show.

  Args:
    study: The study.
    trials: All trials of the study.
    plot: What to draw.
    rows: Rows of the trials that are done.
  """
  points = _points(study, trials, plot, rows)
  if not points:
    return None
  panels = tables.in_order(study, [(p.panel,) for p in points], [plot.panels])
  present = {point.line for point in points}
  lines = [n for n in [*study.order(plot.lines), None] if n in present]
  names = [study.label(plot.lines, line) for line in lines]
  places = len({p.x for p in points if isinstance(p.x, str)})
  wide = max(_PANEL, _NAME * places)
  width = _LEFT + len(panels) * (wide + _GAP) + 40
  width += _LETTER * max(map(len, names))
  chart = svg.new(width, _HEIGHT, f"{plot.y} by {plot.x}")
  chart.set("xmlns", "http://www.w3.org/2000/svg")
  svg.add(chart, "style", "", _STYLE)
  svg.add(chart, "rect", "", width="100%", height="100%")
  svg.add(chart, "text", "", metrics.METRICS[plot.y].label, x=4, y=16)
  low = min(p.y.mean - (p.y.deviation or 0) for p in points)
  high = max(p.y.mean + (p.y.deviation or 0) for p in points)
  margin = 0.04 * (high - low) or 1.0
  for i, (panel,) in enumerate(panels):
    own = [p for p in points if p.panel == panel]
    left = _LEFT + i * (wide + _GAP)
    axes = svg.Axes(
      chart,
      (left, _TOP, left + wide, _HEIGHT - _BOTTOM),
      _range(study, plot, own),
      (low - margin, high + margin),
      log_x=plot.log_x,
    )
    middle = left + wide / 2
    if len(panels) > 1:
      title = study.label(plot.panels, panel)
      svg.add(chart, "text", "title", title, x=middle, y=16)
    axes.grid(labels=i == 0)
    axes.level("axis", low - margin)
    for x, text in _ticks(study, plot, own):
      svg.add(
        *(chart, "text", "middle", text), x=axes.x(x), y=_HEIGHT - _BOTTOM + 18
      )
    if not places:
      x_label = metrics.label(plot.x)
      svg.add(chart, "text", "middle", x_label, x=middle, y=_HEIGHT - 8)
    for line in lines:
      _line(study, plot, chart, axes, lines, line, own)
  _legend(study, plot, chart, axes.right + _GAP, lines, points)
  return svg.to_text(chart).encode()


def _points(
  study: plan.Study,
  trials: Sequence[plan.Trial],
  plot: plan.Plot,
  rows: Sequence[tables.Row],
) -> list[_Point]:
  """Returns all points: one for each combination of the fields that vary."""
  varied = {name for grid in study.grids for name in grid}
  keys = sorted(varied - set(plot.mean_over) - {plan.REPEATED})
  found = tables.statistics(trials, rows, keys, plot.y, plot.mean_over)
  where = None
  if plot.x in metrics.METRICS:
    where = tables.statistics(trials, rows, keys, plot.x, plot.mean_over)
  points = []
  for key, y in found.items():
    values = dict(zip(keys, key, strict=True))
    x = values.get(plot.x)
    if where is not None:
      x = where[key].mean if key in where else None
    if plot.log_x and x == 0:
      x = None
    panel = values.get(plot.panels) if plot.panels else None
    points.append(_Point(panel, values.get(plot.lines), x, y))
  return points


def _range(
  study: plan.Study, plot: plan.Plot, points: Sequence[_Point]
) -> tuple[float, float]:
  """Returns the values at both ends of the axis of x."""
  xs = [point.x for point in points if point.x is not None]
  if any(isinstance(x, str) for x in xs):
    return -0.5, len(study.order(plot.x)) - 0.5
  low, high = (min(xs), max(xs)) if xs else (1, 10)
  if plot.log_x:
    margin = max(high / low, 1.1) ** 0.05
    return low / margin, high * margin
  margin = 0.05 * (high - low) or 1.0
  return low - margin, high + margin


def _ticks(
  study: plan.Study, plot: plan.Plot, points: Sequence[_Point]
) -> list[tuple[float, str]]:
  """Returns places on the axis of x, and what to write there."""
  xs = sorted({point.x for point in points if point.x is not None}, key=str)
  if any(isinstance(x, str) for x in xs):
    places = study.order(plot.x)
    return [(i, study.label(plot.x, x)) for i, x in enumerate(places)]
  if plot.x not in metrics.METRICS:
    return [(x, study.label(plot.x, x)) for x in xs]
  low, high = _range(study, plot, points)
  if plot.log_x:
    values = [10.0**i for i in range(-12, 16) if low <= 10.0**i <= high]
  else:
    values = svg.ticks(low, high)
  return [(x, f"{x:g}".replace("e+", "e")) for x in values]


def _style(study: plan.Study, plot: plan.Plot, line: Any) -> int:
  order = study.order(plot.lines)
  return (order.index(line) if line in order else len(order)) % len(_COLOURS)


def _line(
  study: plan.Study,
  plot: plan.Plot,
  chart: ElementTree.Element,
  axes: svg.Axes,
  lines: Sequence[Any],
  line: Any,
  points: Sequence[_Point],
) -> None:
  """Draws the points of a line; over names, beside those of the others."""
  own = [point for point in points if point.line == line]
  style = _style(study, plot, line)
  group = svg.add(chart, "g", f"c{style}")
  placed = [(point.x, point.y) for point in own if point.x is not None]
  named = any(isinstance(x, str) for x, _ in placed)
  if named:
    places = study.order(plot.x)
    shift = (lines.index(line) + 0.5) / len(lines) - 0.5
    placed = [(places.index(x) + 0.8 * shift, y) for x, y in placed]
  placed.sort()
  for point in own:
    if point.x is None:
      y = axes.y(point.y.mean)
      svg.add(group, "line", "line", x1=axes.left, x2=axes.right, y1=y, y2=y)
  if len(placed) > 1 and not named:
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y.mean):.1f}" for x, y in placed)
    svg.add(group, "polyline", "line", points=path)
  for x, y in placed:
    middle, height = axes.x(x), axes.y(y.mean)
    if y.deviation:
      ends = (axes.y(y.mean - y.deviation), axes.y(y.mean + y.deviation))
      bar = f"M{middle:.1f} {ends[0]:.1f}V{ends[1]:.1f}" + "".join(
        f"M{middle - 3:.1f} {end:.1f}h6" for end in ends
      )
      svg.add(group, "path", "deviation", d=bar)
    _marker(group, style, middle, height, tables.text(plot.y, y))


def _marker(
  group: ElementTree.Element, style: int, x: float, y: float, title: str = ""
) -> None:
  where = f"translate({x:.1f} {y:.1f})"
  marker = _MARKERS[style]
  svg.add(group, "path", "marker", title=title, transform=where, d=marker)


def _legend(
  study: plan.Study,
  plot: plan.Plot,
  chart: ElementTree.Element,
  left: float,
  lines: Sequence[Any],
  points: Sequence[_Point],
) -> None:
  named = any(isinstance(point.x, str) for point in points)
  y = (_HEIGHT - 20 * len(lines)) / 2
  for line in lines:
    style = _style(study, plot, line)
    group = svg.add(chart, "g", f"c{style}")
    if not named:
      svg.add(group, "line", "line", x1=left, x2=left + 28, y1=y, y2=y)
    if any(point.line == line and point.x is not None for point in points):
      _marker(group, style, left + 14, y)
    label = study.label(plot.lines, line)
    svg.add(chart, "text", "", label, x=left + 34, y=y + 4)
    y += 20

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
  f".c{i} {{ color: {colour} }} "
  f".c{i} .line {{ stroke-dasharray: {_DASHES[i % len(_DASHES)]} }}\n"
  for i, colour in enumerate(_COLOURS)
)
# Pixels.
_LEFT, _TOP, _BOTTOM, _HEIGHT, _GAP = 64, 28, 46, 330, 24
_PANEL, _NAME, _LETTER = 330, 84, 7


class _Point(NamedTuple):
  """A point; `x` is None for a level, which does not depend on x."""

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
    plot: What to draw: a point for each combination of the fields that vary.
    rows: Rows of the trials that are done.
  """
  varied = {name for grid in study.grids for name in grid}
  keys = sorted(varied - set(plot.mean_over) - {plan.REPEATED})
  of = {
    name: tables.statistics(trials, rows, keys, name, plot.mean_over)
    for name in (plot.x, plot.y)
    if name in metrics.METRICS
  }
  points = []
  for key, y in of[plot.y].items():
    values = dict(zip(keys, key, strict=True))
    x = values.get(plot.x)
    if plot.x in of:
      x = of[plot.x][key].mean if key in of[plot.x] else None
    if plot.log_x and x == 0:
      x = None
    panel = values.get(plot.panels or "")
    points.append(_Point(panel, values.get(plot.lines), x, y))
  return _Drawing(study, plot, points).to_bytes() if points else None


class _Drawing:
  """One chart: panels side by side, and a legend.

  Over names, lines have no strokes, and their points lie side by side.
  """

  def __init__(
    self, study: plan.Study, plot: plan.Plot, points: Sequence[_Point]
  ):
    self._study, self._plot, self._points = study, plot, points
    self._order = study.order(plot.lines)
    present = {point.line for point in points}
    self._lines = [line for line in [*self._order, None] if line in present]
    self._places = study.order(plot.x)
    self._named = any(isinstance(point.x, str) for point in points)
    names = len(self._places) if self._named else 0
    self._wide = max(_PANEL, _NAME * names)

  def to_bytes(self) -> bytes:
    panels = tables.in_order(
      self._study,
      [(point.panel,) for point in self._points],
      [self._plot.panels or ""],
    )
    legend = _LEFT + len(panels) * (self._wide + _GAP)
    labels = [self._label(line) for line in self._lines]
    width = legend + 50 + _LETTER * max(map(len, labels))
    label = metrics.METRICS[self._plot.y].label
    self._svg = svg.new(width, _HEIGHT, f"{label} by {self._plot.x}")
    self._svg.set("xmlns", "http://www.w3.org/2000/svg")
    svg.add(self._svg, "style", "", _STYLE)
    svg.add(self._svg, "rect", "", width="100%", height="100%")
    self._text("", label, 4, 16)
    for i, (panel,) in enumerate(panels):
      self._panel(i, panel, titled=len(panels) > 1)
    self._legend(legend)
    return svg.to_text(self._svg).encode()

  def _label(self, line: Any) -> str:
    return self._study.label(self._plot.lines, line)

  def _text(self, style: str, text: str, x: float, y: float) -> None:
    svg.add(self._svg, "text", style, text, x=x, y=y)

  def _panel(self, i: int, panel: Any, *, titled: bool) -> None:
    points = [point for point in self._points if point.panel == panel]
    x_range, ticks = self._x_axis(points)
    low = min(p.y.mean - (p.y.deviation or 0) for p in self._points)
    high = max(p.y.mean + (p.y.deviation or 0) for p in self._points)
    margin = 0.04 * (high - low) or 1.0
    left = _LEFT + i * (self._wide + _GAP)
    axes = svg.Axes(
      self._svg,
      (left, _TOP, left + self._wide, _HEIGHT - _BOTTOM),
      x_range,
      (low - margin, high + margin),
      log_x=self._plot.log_x,
    )
    middle = left + self._wide / 2
    if titled:
      title = self._study.label(self._plot.panels or "", panel)
      self._text("title", title, middle, 16)
    axes.grid(labels=i == 0)
    axes.level("axis", low - margin)
    for x, text in ticks:
      self._text("middle", text, axes.x(x), _HEIGHT - _BOTTOM + 18)
    if not self._named:
      label = metrics.label(self._plot.x)
      self._text("middle", label, middle, _HEIGHT - 8)
    for line in self._lines:
      self._line(axes, line, [point for point in points if point.line == line])

  def _x_axis(
    self, points: Sequence[_Point]
  ) -> tuple[tuple[float, float], list[tuple[float, str]]]:
    """Returns the range of x, and the values to name, with their texts."""
    name = self._plot.x
    if self._named:
      texts = [self._study.label(name, place) for place in self._places]
      return (-0.5, len(texts) - 0.5), list(enumerate(texts))
    xs = sorted({point.x for point in points if point.x is not None}) or [1, 10]
    if self._plot.log_x:
      margin = max(xs[-1] / xs[0], 1.1) ** 0.05
      low, high = xs[0] / margin, xs[-1] * margin
      values = [10.0**i for i in range(-12, 16) if low <= 10.0**i <= high]
    else:
      margin = 0.05 * (xs[-1] - xs[0]) or 1.0
      low, high = xs[0] - margin, xs[-1] + margin
      values = svg.ticks(low, high)
    if name not in metrics.METRICS:
      return (low, high), [(x, self._study.label(name, x)) for x in xs]
    return (low, high), [
      (x, f"{x:g}".replace("e+0", "e").replace("e+", "e")) for x in values
    ]

  def _group(self, line: Any) -> tuple[ElementTree.Element, str]:
    """Returns an element in the colour of a line, and its marker."""
    style = [*self._order, line].index(line) % len(_COLOURS)
    return svg.add(self._svg, "g", f"c{style}"), _MARKERS[style]

  def _line(self, axes: svg.Axes, line: Any, points: Sequence[_Point]) -> None:
    group, marker = self._group(line)
    for point in points:
      if point.x is None:
        y = axes.y(point.y.mean)
        svg.add(group, "line", "line", x1=axes.left, x2=axes.right, y1=y, y2=y)
    placed = [(point.x, point.y) for point in points if point.x is not None]
    if self._named:
      shift = (self._lines.index(line) + 0.5) / len(self._lines) - 0.5
      placed = [(self._places.index(x) + 0.8 * shift, y) for x, y in placed]
    placed = sorted((axes.x(x), y) for x, y in placed)
    if len(placed) > 1 and not self._named:
      path = " ".join(f"{x:.1f},{axes.y(y.mean):.1f}" for x, y in placed)
      svg.add(group, "polyline", "line", points=path)
    for x, y in placed:
      if y.deviation:
        low, high = (axes.y(y.mean + d) for d in (-y.deviation, y.deviation))
        ends = "".join(f"M{x - 3:.1f} {end:.1f}h6" for end in (low, high))
        bar = f"M{x:.1f} {low:.1f}V{high:.1f}{ends}"
        svg.add(group, "path", "deviation", d=bar)
      svg.add(
        *(group, "path", "marker"),
        title=f"{self._label(line)}: {tables.text(self._plot.y, y)}",
        transform=f"translate({x:.1f} {axes.y(y.mean):.1f})",
        d=marker,
      )

  def _legend(self, left: float) -> None:
    y = (_HEIGHT - 20 * len(self._lines)) / 2
    for line in self._lines:
      group, marker = self._group(line)
      if not self._named:
        svg.add(group, "line", "line", x1=left, x2=left + 28, y1=y, y2=y)
      if any(p.line == line and p.x is not None for p in self._points):
        where = f"translate({left + 14:.1f} {y:.1f})"
        svg.add(group, "path", "marker", transform=where, d=marker)
      self._text("", self._label(line), left + 34, y + 4)
      y += 20

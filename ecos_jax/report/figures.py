"""The figures of the page: SVG, in the colours and the type of its style sheet.

Elements carry classes and no colours, so that one figure serves a light page
and a dark one. They are built as a tree and written by the XML library, which
escapes what it is given.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple
from xml.etree import ElementTree

import markupsafe
import numpy as np

from ecos_jax.report import collect
from ecos_jax.report import projection

# Colours of the style sheet, and what all other sources share.
COLOURS = 6
OTHER = "other"
_BARS = 200
_CENTROIDS = 300
_MAX_RADIUS = 15


class Series(NamedTuple):
  """A curve.

  Attributes:
    name: What it is.
    style: Its class.
    steps: Ascending.
    values: As many.
    final: A value of the end that was measured otherwise, if any.
  """

  name: str
  style: str
  steps: Sequence[float]
  values: Sequence[float]
  final: float | None = None


def styles(run: collect.Run) -> dict[str, str]:
  """Returns the class of each source: a colour for those that matter most."""
  counts = run.composition or run.sources
  ranked = sorted(run.sources, key=lambda name: -counts[name])
  coloured = ranked if len(ranked) <= COLOURS else ranked[: COLOURS - 1]
  # In the order of the pool, so that runs on one pool mostly agree.
  names = [name for name in run.sources if name in coloured]
  found = dict.fromkeys(run.sources, OTHER)
  return found | {name: f"c{i}" for i, name in enumerate(names)}


def _svg(width: int, height: int, label: str) -> ElementTree.Element:
  return ElementTree.Element(
    "svg",
    {
      "viewBox": f"0 0 {width} {height}",
      "role": "img",
      "aria-label": label,
    },
  )


def _add(
  parent: ElementTree.Element, tag: str, style: str, text: str = "", **fields
) -> ElementTree.Element:
  """Adds an element; numbers are rounded to a tenth of a unit."""
  attributes = {"class": style} if style else {}
  for name, value in fields.items():
    if not isinstance(value, str):
      value = f"{value:.1f}".removesuffix(".0")
    attributes[name.replace("_", "-")] = value
  element = ElementTree.SubElement(parent, tag, attributes)
  if text:
    element.text = text
  return element


def _markup(svg: ElementTree.Element) -> markupsafe.Markup:
  return markupsafe.Markup(ElementTree.tostring(svg, encoding="unicode"))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Returns round numbers in [low, high], `most` or fewer."""
  span = high - low
  if span <= 0:
    return [low]
  power = 10.0 ** math.floor(math.log10(span / most))
  step = next(
    s * power for s in (1, 2, 5, 10, 20) if span / (s * power) <= most - 1
  )
  first = math.ceil(low / step - 1e-9)
  return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


class _Axes:
  """A plot area with a grid, and the scales of both axes."""

  def __init__(
    self,
    svg: ElementTree.Element,
    box: tuple[float, float, float, float],
    x: tuple[float, float],
    y: tuple[float, float],
  ):
    """Takes the corners of the area (left, top, right, bottom) and ranges."""
    self._svg = svg
    self.left, self.top, self.right, self.bottom = box
    self._x, self._y = x, y

  def x(self, value: float) -> float:
    low, high = self._x
    share = (value - low) / (high - low) if high > low else 0.5
    return self.left + share * (self.right - self.left)

  def y(self, value: float) -> float:
    low, high = self._y
    share = (value - low) / (high - low) if high > low else 0.5
    return self.bottom - share * (self.bottom - self.top)

  def grid(self, *, percent: bool = False) -> None:
    """Draws horizontal lines at round values, and what they are."""
    low, high = self._y
    for value in ticks(low, high):
      y = self.y(value)
      _add(self._svg, "line", "grid", x1=self.left, x2=self.right, y1=y, y2=y)
      text = f"{100 * value:g} %" if percent else f"{value:,g}"
      text = text.replace("-", "\N{MINUS SIGN}")
      _add(self._svg, "text", "end", text, x=self.left - 6, y=y + 4)


def coverage(
  clusters: collect.Clusters, threshold: float | None
) -> markupsafe.Markup:
  """Returns the noised coverage as bars, highest first.

  Behind them lies where a cluster without a vote ends up: within one and within
  two standard deviations of the noise; across them, how many votes the sampler
  took the cluster to have.

  Args:
    clusters: Of a run.
    threshold: What a score must reach, in sigma; None if there is no filter.
  """
  scores, sigma = clusters.scores, clusters.statement.sigma
  order = np.argsort(-scores, kind="stable")
  if len(order) > _BARS:
    order = order[np.linspace(0, len(order) - 1, _BARS).round().astype(int)]
  svg = _svg(720, 340, "Noised coverage of each cluster, sorted")
  limit = max(threshold or 0, 2.4) * sigma
  y = (min(float(scores.min()), -2.4 * sigma), max(float(scores.max()), limit))
  axes = _Axes(svg, (58, 10, 714, 330), (0, len(order)), y)
  for style, reach in (("band2", 2 * sigma), ("band1", sigma)):
    _add(
      *(svg, "rect", style),
      x=axes.left,
      width=axes.right - axes.left,
      y=axes.y(reach),
      height=axes.y(-reach) - axes.y(reach),
    )
  axes.grid()
  step = axes.x(1) - axes.x(0)
  for place, r in enumerate(order.tolist()):
    top, bottom = sorted((axes.y(int(scores[r])), axes.y(0)))
    bar = _add(
      *(svg, "rect", "kept" if clusters.taken[r] else "dropped"),
      x=axes.x(place) + 0.1 * step,
      width=0.8 * step,
      y=top,
      height=max(bottom - top, 0.8),
    )
    _add(
      *(bar, "title", ""),
      f"cluster {r}: {scores[r]:,} noised votes, taken for "
      f"{clusters.votes[r]:,.1f}; {clusters.sizes[r]:,} samples in the pool, "
      f"{clusters.taken[r]:,} taken",
    )
    x, y = axes.x(place), axes.y(clusters.votes[r])
    _add(svg, "line", "estimate", x1=x, x2=x + step, y1=y, y2=y)
  zero = axes.y(0)
  _add(svg, "line", "axis", x1=axes.left, x2=axes.right, y1=zero, y2=zero)
  if threshold is not None:
    line = axes.y(threshold * sigma)
    _add(svg, "line", "filter", x1=axes.left, x2=axes.right, y1=line, y2=line)
  return _markup(svg)


def _dots(
  svg: ElementTree.Element,
  points: np.ndarray,
  sources: np.ndarray,
  names: Sequence[str],
  style: str,
) -> None:
  """Draws points [n, 2], those of one class in one path."""
  for name in dict.fromkeys(names):
    own = points[[names[source] == name for source in sources]]
    if len(own):
      path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in own)
      _add(svg, "path", f"{style} {name}", d=path)


def maps(
  run: collect.Run, plane: projection.Projection
) -> list[markupsafe.Markup]:
  """Returns the pool with the centroids, and the proxy in front of the pool.

  The unit is the same on both axes. The outermost half percent on each side is
  drawn at the edge, so that single samples do not squeeze the others.
  """
  both = np.concatenate([plane.pool, plane.proxy])
  low, high = np.quantile(both, (0.005, 0.995), axis=0)
  width, height, edge = 360, 300, 10
  span = np.maximum(high - low, 1e-12)
  scale = min((width - 2 * edge) / span[0], (height - 2 * edge) / span[1])
  middle = (low + high) / 2

  def place(points: np.ndarray) -> np.ndarray:
    flipped = (points - middle) * (scale, -scale) + (width / 2, height / 2)
    return np.clip(flipped, edge / 2, (width - edge / 2, height - edge / 2))

  names = list(styles(run).values())
  pool = _svg(width, height, "Map of the pool, coloured by source")
  _dots(pool, place(plane.pool), plane.pool_sources, names, "dot")
  if run.clusters is not None:
    _circles(pool, place(plane.centroids), run.clusters)
  proxy = _svg(width, height, "Map of the proxy, in front of the pool")
  _dots(
    proxy, place(plane.pool), plane.pool_sources, [OTHER] * len(names), "faint"
  )
  _dots(proxy, place(plane.proxy), plane.proxy_sources, names, "strong")
  return [_markup(pool), _markup(proxy)]


def _circles(
  svg: ElementTree.Element, places: np.ndarray, clusters: collect.Clusters
) -> None:
  """Draws centroids, of an area in proportion to the noised coverage."""
  largest = max(int(clusters.scores.max()), 1)
  order = np.argsort(-clusters.scores, kind="stable")
  if len(order) > _CENTROIDS:
    order = order[
      np.linspace(0, len(order) - 1, _CENTROIDS).round().astype(int)
    ]
  for r in order.tolist():
    score = int(clusters.scores[r])
    circle = _add(
      *(svg, "circle", "hub" if clusters.taken[r] else "hole"),
      cx=places[r][0],
      cy=places[r][1],
      r=max(_MAX_RADIUS * math.sqrt(max(score, 0) / largest), 2),
    )
    _add(circle, "title", "", f"cluster {r}: {score:,} noised votes")


def curves(
  series: Sequence[Series], label: str, *, percent: bool = False
) -> markupsafe.Markup:
  """Returns curves over the steps of training.

  Args:
    series: One or more, none empty.
    label: What the values are.
    percent: Whether they are shares; else they are drawn from 0 up.
  """
  svg = _svg(360, 230, f"{label}, by training step")
  finals = [line.final for line in series if line.final is not None]
  values = [value for line in series for value in line.values] + finals
  last = max(line.steps[-1] for line in series)
  high = max(1.0 if percent else max(values), 1e-9)
  axes = _Axes(svg, (48, 12, 338, 200), (0, last), (min(0, *values), high))
  axes.grid(percent=percent)
  for value in ticks(0, last, 4):
    _add(svg, "text", "middle", f"{value:,g}", x=axes.x(value), y=220)
  for line in series:
    points = [
      f"{axes.x(step):.1f},{axes.y(value):.1f}"
      for step, value in zip(line.steps, line.values, strict=True)
    ]
    shown = _add(svg, "polyline", f"line {line.style}", points=" ".join(points))
    _add(shown, "title", "", line.name)
    if line.final is not None:
      x, y = axes.x(line.steps[-1]), axes.y(line.final)
      mark = _add(svg, "circle", f"final {line.style}", cx=x, cy=y, r=5)
      _add(mark, "title", "", f"{line.name}: {100 * line.final:.1f} %")
  return _markup(svg)

"""The charts of the page, as SVG in the colours of its style sheet."""

from collections.abc import Sequence
import math
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from ecos_jax import svg
from ecos_jax.report import collect
from ecos_jax.report import projection

# Number of colours in the style sheet, and the class of all other sources.
COLOURS = 6
OTHER = "other"
_BARS = 200
_CENTROIDS = 300
_MAX_RADIUS = 15


class Series(NamedTuple):
  """A curve, and its class in the style sheet.

  `final` is the value of the finished network on other data, drawn as a ring.
  """

  name: str
  style: str
  steps: Sequence[float]
  values: Sequence[float]
  final: float | None = None


def styles(run: collect.Run) -> dict[str, str]:
  """Returns the class of each source; the largest have their own colour."""
  counts = run.composition or run.sources
  ranked = sorted(run.sources, key=lambda name: -counts[name])
  coloured = ranked if len(ranked) <= COLOURS else ranked[: COLOURS - 1]
  # In the order of the pool, so that runs on one pool mostly agree.
  names = [name for name in run.sources if name in coloured]
  found = dict.fromkeys(run.sources, OTHER)
  return found | {name: f"c{i}" for i, name in enumerate(names)}


def _ranked(scores: np.ndarray, most: int) -> list[int]:
  """Returns clusters by descending score; evenly spaced ones if too many."""
  order = np.argsort(-scores, kind="stable")
  if len(order) > most:
    order = order[np.linspace(0, len(order) - 1, most).round().astype(int)]
  return order.tolist()


def coverage(clusters: collect.Clusters, threshold: float | None) -> str:
  """Returns the noised coverage as bars, highest first.

  Bands show one and two standard deviations of the noise: where the count of a
  cluster without votes ends up. A mark on each bar shows the sampler's estimate
  of the true votes.

  Args:
    clusters: The clusters of a run.
    threshold: The lowest score that passes, in sigma; None without a filter.
  """
  scores, sigma = clusters.scores, clusters.sigma
  order = _ranked(scores, _BARS)
  chart = svg.new(720, 340, "Noised coverage of each cluster, sorted")
  limit = max(threshold or 0, 2.4) * sigma
  y = (min(float(scores.min()), -2.4 * sigma), max(float(scores.max()), limit))
  axes = svg.Axes(chart, (58, 10, 714, 330), (0, len(order)), y)
  for style, reach in (("band2", 2 * sigma), ("band1", sigma)):
    svg.add(
      *(chart, "rect", style),
      x=axes.left,
      width=axes.right - axes.left,
      y=axes.y(reach),
      height=axes.y(-reach) - axes.y(reach),
    )
  axes.grid()
  step = axes.x(1) - axes.x(0)
  for place, r in enumerate(order):
    top, bottom = sorted((axes.y(int(scores[r])), axes.y(0)))
    svg.add(
      *(chart, "rect", "kept" if clusters.taken[r] else "dropped"),
      title=f"cluster {r}: {scores[r]:,.0f} noised votes, estimated as "
      f"{clusters.votes[r]:,.1f}; {clusters.taken[r]:,} of "
      f"{clusters.sizes[r]:,} samples taken",
      x=axes.x(place) + 0.1 * step,
      width=0.8 * step,
      y=top,
      height=max(bottom - top, 0.8),
    )
    x, y = axes.x(place), axes.y(clusters.votes[r])
    svg.add(chart, "line", "estimate", x1=x, x2=x + step, y1=y, y2=y)
  axes.level("axis", 0)
  if threshold is not None:
    axes.level("filter", threshold * sigma)
  return svg.to_text(chart)


def maps(run: collect.Run, plane: projection.Projection) -> list[str]:
  """Returns the pool with the centroids, and the proxy in front of the pool.

  Both axes have one unit. The outermost half percent on each side is drawn at
  the edge, so that single samples do not squeeze the others.
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

  def dots(chart, points, sources, names, style):
    """Draws points [n, 2], those of one class in one path."""
    for name in dict.fromkeys(names):
      own = points[[names[source] == name for source in sources]]
      if len(own):
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in own)
        svg.add(chart, "path", f"{style} {name}", d=path)

  names, others = list(styles(run).values()), [OTHER] * len(run.sources)
  pool = svg.new(width, height, "Map of the pool, coloured by source")
  dots(pool, place(plane.pool), plane.pool_sources, names, "dot")
  if run.clusters is not None:
    _circles(pool, place(plane.centroids), run.clusters)
  proxy = svg.new(width, height, "Map of the proxy, in front of the pool")
  dots(proxy, place(plane.pool), plane.pool_sources, others, "faint")
  dots(proxy, place(plane.proxy), plane.proxy_sources, names, "strong")
  return [svg.to_text(pool), svg.to_text(proxy)]


def _circles(
  chart: ElementTree.Element, places: np.ndarray, clusters: collect.Clusters
) -> None:
  """Draws the centroids as circles, their areas proportional to the scores."""
  largest = max(int(clusters.scores.max()), 1)
  for r in _ranked(clusters.scores, _CENTROIDS):
    score = int(clusters.scores[r])
    svg.add(
      *(chart, "circle", "hub" if clusters.taken[r] else "hole"),
      title=f"cluster {r}: {score:,} noised votes",
      cx=places[r][0],
      cy=places[r][1],
      r=max(_MAX_RADIUS * math.sqrt(max(score, 0) / largest), 2),
    )


def curves(
  series: Sequence[Series], label: str, *, percent: bool = False
) -> str:
  """Returns curves over the steps of training.

  Args:
    series: One or more, none empty.
    label: What the values are.
    percent: Whether they are shares; the axis then ends at 100 %.
  """
  chart = svg.new(360, 230, f"{label}, by training step")
  finals = [line.final for line in series if line.final is not None]
  values = [value for line in series for value in line.values] + finals
  last = max(line.steps[-1] for line in series)
  y = min(0, *values), max(1.0 if percent else max(values), 1e-9)
  axes = svg.Axes(chart, (48, 12, 338, 200), (0, last), y)
  axes.grid(percent=percent)
  for value in svg.ticks(0, last, 4):
    svg.add(chart, "text", "middle", f"{value:,g}", x=axes.x(value), y=220)
  for line in series:
    points = " ".join(
      f"{axes.x(step):.1f},{axes.y(value):.1f}"
      for step, value in zip(line.steps, line.values, strict=True)
    )
    style = f"line {line.style}"
    svg.add(chart, "polyline", style, title=line.name, points=points)
    if line.final is not None:
      svg.add(
        *(chart, "circle", f"final {line.style}"),
        title=f"{line.name}: {100 * line.final:.1f} %",
        cx=axes.x(line.steps[-1]),
        cy=axes.y(line.final),
        r=5,
      )
  return svg.to_text(chart)

from xml.etree import ElementTree

import numpy as np
import pytest

from ecos_jax import messages
from ecos_jax.report import charts
from ecos_jax.report import collect


def _clusters(scores, sigma=10.0):
  scores = np.array(scores)
  statement = messages.Statement(sigma, 0.8, 1e-5, "add_remove", 0.3, True)
  count = len(scores)
  return collect.Clusters(
    centroids=np.zeros((count, 4), np.float32),
    assignment=np.zeros(9, np.int32),
    sizes=np.full(count, 9),
    scores=scores,
    votes=np.maximum(scores, 0.0),
    taken=np.where(scores >= sigma, 1, 0),
    statement=statement,
    sigma=sigma,
  )


def _of_class(svg, name):
  return [e for e in svg.iter() if name in e.get("class", "").split()]


def test_bars_are_sorted_and_coloured_by_what_was_taken():
  svg = ElementTree.fromstring(charts.coverage(_clusters([3, 90, -7, 40]), 1))
  kept, dropped = _of_class(svg, "kept"), _of_class(svg, "dropped")
  titles = [bar[0].text.partition(" noised")[0] for bar in kept + dropped]
  assert titles == [
    "cluster 1: 90",
    "cluster 3: 40",
    "cluster 0: 3",
    "cluster 2: -7",
  ]
  places = [float(bar.get("x")) for bar in kept + dropped]
  assert places == sorted(places)
  # Lengths are in proportion, downwards below 0.
  heights = [float(bar.get("height")) for bar in kept + dropped]
  assert heights[0] / heights[1] == pytest.approx(90 / 40, rel=0.01)
  [zero], [line] = _of_class(svg, "axis"), _of_class(svg, "filter")
  base = float(zero.get("y1"))
  assert float(dropped[1].get("y")) == base
  # The filter and the edge of the inner band lie at one sigma.
  assert base - float(line.get("y1")) == pytest.approx(heights[0] / 9, abs=0.11)
  [band] = _of_class(svg, "band1")
  assert float(band.get("y")) == float(line.get("y1"))
  assert float(band.get("height")) == pytest.approx(2 * heights[0] / 9, abs=0.2)
  # What the cloud took the counts for: here the counts, or none.
  estimates = [float(e.get("y1")) for e in _of_class(svg, "estimate")]
  tops = [float(bar.get("y")) for bar in kept]
  assert estimates[:2] == pytest.approx(tops, abs=0.11)
  assert estimates[3] == base


def test_without_a_filter_there_is_no_line():
  svg = ElementTree.fromstring(charts.coverage(_clusters([3, 90]), None))
  assert not _of_class(svg, "filter")


def test_a_large_codebook_is_thinned_out():
  svg = ElementTree.fromstring(charts.coverage(_clusters(np.arange(50_000)), 1))
  bars = _of_class(svg, "kept") + _of_class(svg, "dropped")
  assert len(bars) == 200
  assert bars[0][0].text.startswith("cluster 49999: 49,999")
  assert bars[-1][0].text.startswith("cluster 0: 0")


def test_curves_are_to_scale_and_named():
  series = charts.Series("<a>", "c0", [10, 20], [0.5, 1.0], final=0.25)
  svg = ElementTree.fromstring(charts.curves([series], "x", percent=True))
  [line] = _of_class(svg, "line")
  (x0, y0), (x1, y1) = (
    map(float, point.split(",")) for point in line.get("points").split()
  )
  [mark] = _of_class(svg, "final")
  x, y = float(mark.get("cx")), float(mark.get("cy"))
  assert x == x1
  assert y - y0 == pytest.approx((y0 - y1) / 2)
  assert (x1 - x0) == pytest.approx(x0 - 48)
  assert line[0].text == "<a>"

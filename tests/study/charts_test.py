from pathlib import Path
from xml.etree import ElementTree

import pytest

from ecos_jax.study import charts
from ecos_jax.study import plan

_BASE = f"{Path(__file__).parents[2] / 'configs/digits_manual.py'}:smoke"
_SVG = "{http://www.w3.org/2000/svg}"


def _draw(plot, grids, accuracy):
  """Returns a chart; `accuracy` maps the values of a trial to percent."""
  study = plan.of(_BASE, grids=grids)
  trials = study.trials()
  rows = [
    {
      "name": trial.name,
      "values": trial.values,
      "config": {"seed": trial.config.seed},
      "summary": {"accuracy": accuracy(trial.values) / 100},
    }
    for trial in trials
  ]
  chart = charts.draw(study, trials, plot, rows)
  assert chart is not None
  return ElementTree.fromstring(chart)


def _texts(chart):
  return [e.text for e in chart.iter(f"{_SVG}text")]


def _markers(chart):
  """Returns x, y and the title of each point."""
  found = []
  for element in chart.iter(f"{_SVG}path"):
    if element.get("class") == "marker" and len(element):
      x, y = element.get("transform")[len("translate(") : -1].split()
      found.append((float(x), float(y), element[0].text))
  return found


def test_points_over_numbers_are_to_scale():
  plot = plan.Plot(
    *("p", "sampling.budget", "accuracy", "sampling.method"), log_x=True
  )
  grids = (
    {
      "sampling.method": ("ecos",),
      "sampling.budget": (10, 100, 1000),
      "seed": (1, 2),
    },
    {"sampling.method": ("local",), "seed": (1,)},
  )
  accuracy = {10: 40, 100: 60, 1000: 80, None: 90}
  chart = _draw(
    plot,
    grids,
    lambda v: accuracy[v.get("sampling.budget")] + 2 * v["seed"] - 3,
  )
  (x0, y0, first), (x1, y1, _), (x2, y2, _) = _markers(chart)
  assert first == "ecos: 40.0 ± 1.4"
  # Equal steps of the logarithm and of the accuracy.
  assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
  assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
  # A trial without a budget is a level, here at 89.
  levels = [e for e in chart.iter(f"{_SVG}line") if e.get("class") == "line"]
  assert float(levels[0].get("y1")) == pytest.approx(
    y2 - 9 / 20 * (y1 - y2), abs=0.2
  )
  texts = _texts(chart)
  names = ["10", "100", "1,000"]
  assert [text for text in texts if text in names] == names
  assert texts.index("ecos") < texts.index("local")


def test_points_over_names_lie_side_by_side_in_each_panel():
  plot = plan.Plot(
    "p",
    x="data.client",
    y="accuracy",
    lines="sampling.method",
    panels="data.split",
  )
  grid = {
    "data.split": ("id_ood", "ood"),
    "data.client": ("mnist", "usps"),
    "sampling.method": ("ecos", "random"),
    "seed": (1,),
  }
  chart = _draw(
    plot, (grid,), lambda v: 50 + 10 * (v["sampling.method"] == "ecos")
  )
  markers = _markers(chart)
  assert len(markers) == 8
  for method, height in (("ecos", min), ("random", max)):
    own = [(x, y) for x, y, title in markers if title.startswith(method)]
    assert len({x for x, _ in own}) == 4
    assert {y for _, y in own} == {height(y for _, y, _ in markers)}
  left = sorted(markers)[:4]
  assert [t.split(":")[0] for _, _, t in left] == ["ecos", "random"] * 2
  assert {"id_ood", "ood", "mnist", "usps"} <= set(_texts(chart))
  assert not list(chart.iter(f"{_SVG}polyline"))


def test_nothing_done_is_no_chart():
  plot = plan.Plot("p", "sampling.budget", "accuracy", "sampling.method")
  study = plan.of(_BASE, grids=({"sampling.budget": (8,)},))
  assert charts.draw(study, study.trials(), plot, []) is None

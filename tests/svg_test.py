from xml.etree import ElementTree

import pytest

from ecos_jax import svg


@pytest.mark.parametrize(
  ("low", "high", "expected"),
  [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (-24, 312, [0, 100, 200, 300]),
    (0, 1500, [0, 500, 1000, 1500]),
    (3, 3, [3]),
  ],
)
def test_ticks_are_round(low, high, expected):
  assert svg.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("high", [1e-9, 0.37, 1, 2.5, 99, 12345, 1e12])
def test_ticks_are_few_and_within(high):
  found = svg.ticks(0, high)
  assert 2 <= len(found) <= 6
  assert min(found) >= 0
  assert max(found) <= high * (1 + 1e-9)


def test_text_is_escaped_and_numbers_are_rounded():
  chart = svg.new(20, 10, "<a> & b")
  svg.add(chart, "text", "end", "<c>", title="x > y", x=1 / 3, y=2.0)
  written = svg.to_text(chart)
  assert written.startswith(
    '<svg viewBox="0 0 20 10" role="img" aria-label="&lt;'
  )
  parsed = ElementTree.fromstring(written)
  assert parsed[0].attrib == {"class": "end", "x": "0.3", "y": "2"}
  assert (parsed[0].text, parsed[0][0].text) == ("<c>", "x > y")


def test_scales_of_axes():
  axes = svg.Axes(svg.new(100, 100, ""), (10, 0, 90, 50), (1, 100), (-1, 1))
  assert [axes.x(1), axes.x(100), axes.y(-1), axes.y(1)] == [10, 90, 50, 0]
  box, x = (0, 0, 10, 10), (1, 100)
  log = svg.Axes(svg.new(10, 10, ""), box, x, (0, 1), log_x=True)
  assert log.x(10) == pytest.approx(5)

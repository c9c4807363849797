"""Charts as SVG: elements, round ticks, and axes with a grid.

Elements carry classes and no colours, so that a style sheet decides how they
look. They form a tree that the XML library writes, which escapes all text.
"""

import math
from typing import Any
from xml.etree import ElementTree


def new(width: float, height: float, label: str) -> ElementTree.Element:
  """Returns an empty drawing; `label` describes it to a screen reader."""
  box = f"0 0 {width:g} {height:g}"
  fields = {"viewBox": box, "role": "img", "aria-label": label}
  return ElementTree.Element("svg", fields)


def add(
  parent: ElementTree.Element,
  tag: str,
  style: str,
  text: str = "",
  *,
  title: str = "",
  **fields: Any,
) -> ElementTree.Element:
  """Returns an element that was added to `parent`.

  Args:
    parent: The element that gets it.
    tag: Its tag.
    style: Its classes; may be empty.
    text: Its text.
    title: What is shown when the mouse is over it.
    **fields: Its attributes, `_` for `-`; numbers are rounded to a tenth.
  """
  attributes = {"class": style} if style else {}
  for name, value in fields.items():
    if not isinstance(value, str):
      value = f"{value:.1f}".removesuffix(".0")
    attributes[name.replace("_", "-")] = value
  element = ElementTree.SubElement(parent, tag, attributes)
  element.text = text or None
  if title:
    add(element, "title", "", title)
  return element


def to_text(svg: ElementTree.Element) -> str:
  """Returns the drawing as XML."""
  return ElementTree.tostring(svg, encoding="unicode")


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


class Axes:
  """An area to draw in with its edges `left`, `top`, ..., and both scales."""

  def __init__(
    self,
    svg: ElementTree.Element,
    box: tuple[float, float, float, float],
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    log_x: bool = False,
  ):
    """Sets the scales.

    Args:
      svg: The drawing.
      box: Left, top, right and bottom of the area.
      x: The values at its left and right.
      y: The values at its bottom and top.
      log_x: Whether the scale of x is logarithmic.
    """
    self._svg = svg
    self.left, self.top, self.right, self.bottom = box
    self._x, self._y, self._log_x = x, y, log_x

  def x(self, value: float) -> float:
    """Returns where a value lies from left to right."""
    low, high = self._x
    if self._log_x:
      low, high, value = map(math.log, (low, high, value))
    share = (value - low) / (high - low) if high > low else 0.5
    return self.left + share * (self.right - self.left)

  def y(self, value: float) -> float:
    """Returns where a value lies from top to bottom."""
    low, high = self._y
    share = (value - low) / (high - low) if high > low else 0.5
    return self.bottom - share * (self.bottom - self.top)

  def level(self, style: str, value: float) -> None:
    """Draws a horizontal line at a value of y."""
    y = self.y(value)
    add(self._svg, "line", style, x1=self.left, x2=self.right, y1=y, y2=y)

  def grid(self, *, percent: bool = False, labels: bool = True) -> None:
    """Draws a horizontal line at each round value of y, and the values."""
    low, high = self._y
    for value in ticks(low, high):
      self.level("grid", value)
      if labels:
        text = f"{100 * value:g} %" if percent else f"{value:,g}"
        text = text.replace("-", "\N{MINUS SIGN}")
        y = self.y(value) + 4
        add(self._svg, "text", "end", text, x=self.left - 6, y=y)

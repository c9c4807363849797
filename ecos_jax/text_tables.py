"""Tables as text: aligned for a terminal, or in Markdown."""

from collections.abc import Collection, Sequence


def aligned(
  rows: Sequence[Sequence[str]], left: Collection[int] = (0, 1)
) -> str:
  """Returns a table in columns of equal width, one line a row.

  Args:
    rows: The texts of each row, all of one length.
    left: Positions of the columns that are flush left; the others are flush
      right.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      text.ljust(width) if i in left else text.rjust(width)
      for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table; the first row is its head."""
  head, *body = rows
  return "\n".join(
    "| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)
  )

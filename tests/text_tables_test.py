from ecos_jax import text_tables

_ROWS = [("run", "note", "bytes"), ("a", "x", "1,184"), ("longer", "", "7")]


def test_columns_are_aligned_and_lines_end_without_spaces():
  assert text_tables.aligned(_ROWS).splitlines() == [
    "run     note  bytes",
    "a       x     1,184",
    "longer            7",
  ]
  assert text_tables.aligned([("a", ""), ("b", "cd")], left=(1,)) == "a\nb  cd"


def test_markdown_has_a_line_below_its_head():
  assert text_tables.markdown(_ROWS[:2]) == (
    "| run | note | bytes |\n| --- | --- | --- |\n| a | x | 1,184 |"
  )

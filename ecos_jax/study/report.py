"""What a study leaves: rows as JSON and CSV, Markdown, pictures.

In the workdir: `rows.json` and `rows.csv` (a row a cell: its configuration, its
summary, what was measured beside it), `results.md`, and the pictures. The same
text goes into a document of several studies, each between two marks.
"""

import csv
import io
from pathlib import Path
import re
from typing import Any

from ecos_jax import errors
from ecos_jax import files
from ecos_jax.study import paper
from ecos_jax.study import plan
from ecos_jax.study import run
from ecos_jax.study import tables


def write(
  study: plan.Study, workdir: Path, command: str
) -> tuple[str, list[Path]]:
  """Writes all files of a study, as far as it is.

  Args:
    study: The study.
    workdir: Of the study.
    command: What makes it again.

  Returns:
    The Markdown, and the pictures that it shows, which lie in `workdir`.
  """
  # Imported here: optional, and slow.
  from ecos_jax.study import plots

  cells = study.cells()
  rows = [row for cell in cells if (row := run.row(workdir, cell)) is not None]
  failures = {
    cell.name: failure
    for cell in cells
    if (failure := run.failure(workdir, cell)) is not None
  }
  files.write_json(workdir / "rows.json", rows)
  files.write(workdir / "rows.csv", _csv(rows))
  pictures = [
    file
    for plot in study.plots
    for file in plots.draw(study, plot, rows, workdir)
  ]
  text = _text(study, rows, failures, command)
  shown = [file for file in pictures if file.suffix == ".svg"]
  text += "".join(f"\n![{file.stem}]({file.name})\n" for file in shown)
  files.write(workdir / "results.md", text.encode())
  return text, pictures


def _leaves(value: Any, prefix: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    return {prefix.rstrip("."): value}
  leaves = {}
  for name, member in value.items():
    leaves |= _leaves(member, f"{prefix}{name}.")
  return leaves


def _csv(rows: list[tables.Row]) -> bytes:
  flat = [_leaves(row, "") for row in rows]
  names = list(dict.fromkeys(name for row in flat for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, names, lineterminator="\n")
  writer.writeheader()
  writer.writerows(flat)
  return text.getvalue().encode()


def _text(
  study: plan.Study,
  rows: list[tables.Row],
  failures: dict[str, dict[str, Any]],
  command: str,
) -> str:
  parts = [f"## {study.title}", study.about.strip()]
  parts.append(_made(study, rows, command))
  for table in study.tables:
    parts.append(f"### {table.title}")
    parts.append(tables.markdown(study, table, rows))
  if failures:
    parts.append(f"### {len(failures)} cells failed")
    parts += [
      f"* `{name}`: {failure['error']}\n\n  ```\n  {failure['command']}\n  ```"
      for name, failure in failures.items()
    ]
  if study.paper is not None:
    quoted = paper.TABLES[study.paper]
    parts += ["### The paper's figures", quoted.what]
    parts.append(tables.markdown_rows(quoted.rows))
  return "\n\n".join(part for part in parts if part) + "\n"


def _made(study: plan.Study, rows: list[tables.Row], command: str) -> str:
  """Returns when, where, with what and how it was made."""
  planned = len(study.cells())
  done = f"{len(rows):,} of {planned:,} cells"
  if rows:
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    versions = "; ".join(
      dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in row["versions"].items())
        for row in rows
      )
    )
    machines = "; ".join(dict.fromkeys(row["machine"] for row in rows))
    mean = sum(row["seconds"] for row in rows) / len(rows)
    done += (
      f", {when}, {machines}; {versions}. A cell took {mean:.1f} s on average, "
      f"{sum(row['seconds'] for row in rows) / 3600:.1f} h in all, with one "
      "process a core"
    )
  if len({cell.config.seed for cell in study.cells()}) > 1:
    done += ". Mean ± standard deviation (of a sample) over the seeds"
  return f"{done}.\n\n```\n{command}\n```"


def insert(document: Path, name: str, text: str, pictures: list[Path]) -> None:
  """Puts the text of a study into a document, in the place of its last one.

  The place is between `<!-- study NAME -->` and `<!-- end of NAME -->`; at the
  end where there is none. The pictures that it shows go to a folder that is
  called as the document.

  Args:
    document: A Markdown file.
    name: Of the study.
    text: From `write`.
    pictures: From `write`.

  Raises:
    EcosError: The first mark is there without the second.
  """
  begin, end = f"<!-- study {name} -->", f"<!-- end of {name} -->"
  folder = document.with_suffix("")
  folder.mkdir(parents=True, exist_ok=True)
  for picture in pictures:
    if picture.suffix != ".svg":
      continue
    target = folder / f"{name}-{picture.name}"
    files.write(target, picture.read_bytes())
    text = text.replace(f"]({picture.name})", f"]({folder.name}/{target.name})")
  old = document.read_text() if document.exists() else "# Results\n"
  section = f"{begin}\n\n{text.strip()}\n\n{end}"
  if begin not in old:
    new = f"{old.rstrip()}\n\n{section}\n"
  elif end not in old:
    raise errors.EcosError(f"--out={document} has '{begin}' but not '{end}'")
  else:
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    new = re.sub(pattern, lambda _: section, old, flags=re.DOTALL)
  files.write(document, new.encode())


def listing(study: plan.Study, workdir: Path) -> str:
  """Returns a line a cell: done, failed and why, or left."""
  lines, done, failed = [], 0, 0
  cells = study.cells()
  for cell in cells:
    if (row := run.row(workdir, cell)) is not None:
      done += 1
      state = f"done, {row['seconds']:.0f} s"
    elif (failure := run.failure(workdir, cell)) is not None:
      failed += 1
      state = f"FAILED: {failure['error']}"
    else:
      state = "left"
    lines.append(f"{cell.name}  {state}")
  left = len(cells) - done - failed
  lines.append(f"{len(cells)} cells: {done} done, {failed} failed, {left} left")
  return "\n".join(lines)

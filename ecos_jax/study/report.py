"""Writes the files of a study: rows, Markdown, further tables, pictures.

In the workdir: `rows.json` and `rows.csv` (one row per cell: its configuration,
its summary, what was measured beside it), `results.md` with the study's first
table, one CSV file for each other table, and the pictures. The same text goes
into a document of several studies, each between two marks.
"""

from collections.abc import Iterable, Sequence
import csv
import io
from pathlib import Path
import re
from typing import Any

from ecos_jax import errors
from ecos_jax import files as files_lib
from ecos_jax.study import paper
from ecos_jax.study import plan
from ecos_jax.study import run
from ecos_jax.study import tables


def write(
  study: plan.Study, workdir: Path, command: str
) -> tuple[str, list[Path]]:
  """Writes all files of a study, as far as it is done.

  Args:
    study: The study.
    workdir: The folder of the study.
    command: The command line that runs the study again.

  Returns:
    The Markdown, and the files in `workdir` that it shows or links.
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
  files_lib.write_json(workdir / "rows.json", rows)
  flat = [_leaves(row, "") for row in rows]
  names = list(dict.fromkeys(name for row in flat for name in row))
  _write_csv(
    workdir / "rows.csv",
    [names, *([row.get(name) for name in names] for row in flat)],
  )
  pictures = [
    file
    for plot in study.plots
    for file in plots.draw(study, plot, rows, workdir)
    if file.suffix == ".svg"
  ]
  links = []
  for table in study.tables[1:]:
    path = workdir / f"{_slug(table.title)}.csv"
    _write_csv(path, tables.lines(study, table, rows))
    links.append((table.title, path))
  if study.paper is not None:
    path = workdir / "paper.csv"
    _write_csv(path, paper.TABLES[study.paper].rows)
    links.append(("The paper's figures", path))
  text = _text(study, rows, failures, command, pictures, links)
  files_lib.write(workdir / "results.md", text.encode())
  return text, [*pictures, *(path for _, path in links)]


def _slug(title: str) -> str:
  words = title.lower().replace(" in %", "")
  return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def _leaves(value: Any, prefix: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    return {prefix.rstrip("."): value}
  leaves = {}
  for name, member in value.items():
    leaves |= _leaves(member, f"{prefix}{name}.")
  return leaves


def _write_csv(path: Path, lines: Iterable[Sequence[Any]]) -> None:
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(lines)
  files_lib.write(path, text.getvalue().encode())


def _text(
  study: plan.Study,
  rows: list[tables.Row],
  failures: dict[str, dict[str, Any]],
  command: str,
  pictures: list[Path],
  links: list[tuple[str, Path]],
) -> str:
  parts = [f"## {study.title}", study.about.strip()]
  for table in study.tables[:1]:
    parts.append(f"**{table.title}**")
    parts.append(tables.markdown(tables.lines(study, table, rows)))
  parts += [f"![{file.stem}]({file.name})" for file in pictures]
  if links:
    named = (f"[{title}]({path.name})" for title, path in links)
    parts.append(f"More tables, as CSV: {'; '.join(named)}.")
  if study.paper is not None:
    parts.append(f"The paper's figures: {paper.TABLES[study.paper].what}")
  if failures:
    parts.append(f"**{len(failures)} cells failed**")
    parts += [
      f"* `{name}`: {failure['error']}\n\n  ```\n  {failure['command']}\n  ```"
      for name, failure in failures.items()
    ]
  parts.append(_made(study, rows, command))
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
      "process per core"
    )
  if len({cell.config.seed for cell in study.cells()}) > 1:
    done += ". Mean ± standard deviation (of a sample) over the seeds"
  return f"{done}.\n\n```\n{command}\n```"


def insert(document: Path, name: str, text: str, files: list[Path]) -> None:
  """Puts the text of a study into a document, replacing an earlier version.

  The text stands between `<!-- study NAME -->` and `<!-- end of NAME -->`; a
  document without these marks gets them at its end. The files that the text
  shows or links are copied to the folder with the document's name.

  Args:
    document: A Markdown file.
    name: Name of the study.
    text: From `write`.
    files: From `write`.

  Raises:
    EcosError: The first mark is there without the second.
  """
  begin, end = f"<!-- study {name} -->", f"<!-- end of {name} -->"
  folder = document.with_suffix("")
  folder.mkdir(parents=True, exist_ok=True)
  for file in files:
    target = folder / f"{name}-{file.name}"
    files_lib.write(target, file.read_bytes())
    text = text.replace(f"]({file.name})", f"]({folder.name}/{target.name})")
  old = document.read_text() if document.exists() else "# Results\n"
  section = f"{begin}\n\n{text.strip()}\n\n{end}"
  if begin not in old:
    new = f"{old.rstrip()}\n\n{section}\n"
  elif end not in old:
    raise errors.EcosError(f"--out={document} has '{begin}' but not '{end}'")
  else:
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    new = re.sub(pattern, lambda _: section, old, flags=re.DOTALL)
  files_lib.write(document, new.encode())


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

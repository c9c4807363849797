"""Writes the files of a study: rows, Markdown, further tables, charts.

In the workdir: `rows.json` and `rows.csv` (one row per trial: its
configuration, its summary, what was measured beside it), `results.md` with the
study's first table, one CSV file for each other table, and the charts. The same
text goes into a document of several studies, each between two marks.
"""

from collections.abc import Iterable, Sequence
import csv
import io
from pathlib import Path
import re
from typing import Any

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files as files_lib
from ecos_jax import text_tables
from ecos_jax.study import charts
from ecos_jax.study import plan
from ecos_jax.study import run
from ecos_jax.study import tables


def write(
  study: plan.Study, workdir: Path, command: str
) -> tuple[str, list[Path]]:
  """Writes all files of a study, from the trials that are done.

  Args:
    study: The study.
    workdir: The folder of the study.
    command: The command line that runs the study again.

  Returns:
    The Markdown, and the files in `workdir` that it shows or links.
  """
  trials = study.trials()
  rows = [r for trial in trials if (r := run.row(workdir, trial)) is not None]
  files_lib.write_json(workdir / "rows.json", rows)
  flat = [config_lib.flatten(row) for row in rows]
  names = list(dict.fromkeys(name for row in flat for name in row))
  _write_csv(
    workdir / "rows.csv",
    [names, *([row.get(name) for name in names] for row in flat)],
  )
  shown = [
    (t.title, _slug(t.title), tables.lines(study, trials, t, rows))
    for t in study.tables
  ]
  parts = [f"## {study.title}", study.about.strip()]
  for title, _, lines in shown[:1]:
    parts += [f"**{title}**", text_tables.markdown(lines)]
  files, links, more = [], [], shown[1:]
  for plot in study.plots:
    if chart := charts.draw(study, trials, plot, rows):
      path = workdir / f"{plot.name}.svg"
      files_lib.write(path, chart)
      files.append(path)
      parts.append(f"![{plot.name}]({path.name})")
  if study.paper is not None:
    lines = [list(row) for row in study.paper.rows]
    more.append(("The paper's figures", "paper", lines))
  for title, slug, lines in more:
    path = workdir / f"{slug}.csv"
    _write_csv(path, lines)
    files.append(path)
    links.append(f"[{title}]({path.name})")
  if links:
    parts.append(f"More tables, as CSV: {'; '.join(links)}.")
  if study.paper is not None:
    parts.append(f"The paper's figures: {study.paper.text}")
  parts += _failures(workdir, trials)
  parts.append(_made(trials, rows))
  parts.append(f"```\n{command}\n```")
  text = "\n\n".join(filter(None, parts)) + "\n"
  files_lib.write(workdir / "results.md", text.encode())
  return text, files


def _slug(title: str) -> str:
  words = title.lower().replace(" in %", "")
  return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def _write_csv(path: Path, lines: Iterable[Sequence[Any]]) -> None:
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(lines)
  files_lib.write(path, text.getvalue().encode())


def _failures(workdir: Path, trials: Sequence[plan.Trial]) -> list[str]:
  """Returns an item for each trial that failed, under a heading."""
  failed = [
    f"* `{trial.name}`: {found['error']}\n\n  ```\n  {found['command']}\n  ```"
    for trial in trials
    if (found := run.failure(workdir, trial)) is not None
  ]
  return [f"**{len(failed)} trials failed**", *failed] if failed else []


def _made(trials: Sequence[plan.Trial], rows: Sequence[tables.Row]) -> str:
  """Returns a line about when, where and with which versions it was made."""
  made = f"{len(rows):,} of {len(trials):,} trials"
  if rows:
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    versions = dict.fromkeys(
      ", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows
    )
    machines = dict.fromkeys(row["machine"] for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    made += (
      f", {when}, {'; '.join(machines)}; {'; '.join(versions)}. A trial took "
      f"{seconds / len(rows):.1f} s on average, {seconds / 3600:.1f} h in all, "
      "with one process per core"
    )
  if len({trial.config.seed for trial in trials}) > 1:
    made += ". Mean ± standard deviation (of a sample) over the seeds"
  return f"{made}."


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

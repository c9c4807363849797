import csv
import json
from pathlib import Path

import pytest

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.study import plan
from ecos_jax.study import results
from ecos_jax.study import run

_BASE = f"{Path(__file__).parents[2] / 'configs/digits_manual.py'}:smoke"


def _study() -> plan.Study:
  return plan.of(
    _BASE,
    name="small",
    title="Small",
    about="What it is.",
    grids=(
      {
        "sampling.method": ("ecos", "random"),
        "sampling.budget": (100, 200),
        "data.client": ("mnist", "optdigits"),
        "seed": (1, 2),
      },
      {
        "sampling.method": ("local",),
        "data.client": ("mnist", "optdigits"),
        "seed": (1, 2),
      },
    ),
    tables=(
      plan.Table(
        "Accuracy",
        rows=("sampling.method",),
        columns="sampling.budget",
        metrics=("accuracy",),
        mean_over=("data.client",),
      ),
      plan.Table(
        "Accuracy in %, by client",
        rows=("data.client", "sampling.method"),
        columns="sampling.budget",
        metrics=("accuracy",),
      ),
    ),
    plots=(
      plan.Plot(
        "lines",
        x="sampling.budget",
        y="accuracy",
        lines="sampling.method",
        mean_over=("data.client",),
        log_x=True,
      ),
      plan.Plot(
        "bars",
        x="data.client",
        y="accuracy",
        lines="sampling.method",
        panels="sampling.budget",
      ),
    ),
    paper=plan.Quoted("What it is.", (("R", "10"), ("accuracy", "83.1"))),
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A study of made-up rows, in which one trial has failed."""
  folder = tmp_path_factory.mktemp("results")
  study = _study()
  *done, failed = study.trials()
  for i, trial in enumerate(done):
    path = run.folder(folder, trial)
    path.mkdir(parents=True)
    row = {
      "name": trial.name,
      "values": trial.values,
      "config": config_lib.flatten(trial.config),
      "summary": {"accuracy": 0.5 + i / 100, "seconds": {"pool": 0.25}},
      "simulation": {},
      "seconds": 2.0,
      "date": f"2026-01-0{1 + i % 2}",
      "versions": {"jax": "1.2.3"},
      "machine": "abacus",
    }
    (path / run.ROW).write_text(json.dumps(row))
  path = run.folder(folder, failed)
  path.mkdir(parents=True)
  failure = {"error": "out of beads", "command": "python -m one"}
  (path / run.FAILURE).write_text(json.dumps(failure))
  text, files = results.write(study, folder, "python -m all")
  return study, folder, text, files


def test_the_text_says_when_where_with_what_and_how(finished):
  _, folder, text, _ = finished
  assert (folder / "results.md").read_text() == text
  for told in (
    "## Small\n\nWhat it is.\n",
    "19 of 20 trials, 2026-01-01 to 2026-01-02, abacus; jax 1.2.3.",
    "A trial took 2.0 s",
    "```\npython -m all\n```",
    "| method | 100 | 200 |",
    "out of beads",
    "python -m one",
    "The paper's figures: What it is.",
    "![lines](lines.svg)",
    "[Accuracy in %, by client](accuracy-by-client.csv)",
  ):
    assert told in text
  assert text.count("\n| --- |") == 1


def test_rows_as_json_and_csv_hold_every_field_and_number(finished):
  study, folder, _, _ = finished
  rows = json.loads((folder / "rows.json").read_bytes())
  with (folder / "rows.csv").open() as file:
    table = list(csv.DictReader(file))
  assert len(table) == len(rows) == 19
  fields = config_lib.flatten(study.trials()[0].config)
  for row, line in zip(rows, table, strict=True):
    assert line["name"] == row["name"]
    assert float(line["summary.accuracy"]) == row["summary"]["accuracy"]
    assert line["summary.seconds.pool"] == "0.25"
    assert {f"config.{name}" for name in fields} <= line.keys()
    assert line["config.sampling.method"] == row["values"]["sampling.method"]


def test_other_tables_and_the_papers_figures_are_csv(finished):
  _, folder, _, _ = finished
  with (folder / "accuracy-by-client.csv").open() as file:
    head, *lines = csv.reader(file)
  assert head == ["client", "method", "100", "200"]
  assert lines[0] == ["mnist", "ecos", "52.5 ± 3.5", "53.5 ± 3.5"]
  assert [line[:2] for line in lines] == [
    [client, method]
    for client in ("mnist", "optdigits")
    for method in ("ecos", "random", "local")
  ]
  assert (folder / "paper.csv").read_text() == "R,10\naccuracy,83.1\n"


def test_files_are_there_and_the_same_every_time(finished):
  study, folder, _, files = finished
  assert [f.name for f in files] == [
    *("lines.svg", "bars.svg", "accuracy-by-client.csv", "paper.csv")
  ]
  before = [file.read_bytes() for file in files]
  results.write(study, folder, "python -m all")
  assert [file.read_bytes() for file in files] == before
  assert b"local" in before[0]


def test_a_document_holds_each_study_once_and_keeps_the_rest(
  finished, tmp_path
):
  _, _, text, files = finished
  document = tmp_path / "results.md"
  document.write_text("# Results\n\nBefore.\n")
  results.insert(document, "small", text, files)
  results.insert(document, "other", "Other.", [])
  once = document.read_text()
  assert once.startswith("# Results\n\nBefore.\n\n<!-- study small -->")
  assert "![lines](results/small-lines.svg)" in once
  shown = tmp_path / "results" / "small-lines.svg"
  assert shown.read_bytes() == files[0].read_bytes()
  assert "[The paper's figures](results/small-paper.csv)" in once
  assert (tmp_path / "results" / "small-paper.csv").exists()
  results.insert(document, "small", text.replace("What", "That"), files)
  assert document.read_text() == once.replace("What it is", "That it is")
  document.write_text("<!-- study small -->\n")
  with pytest.raises(errors.EcosError, match="end of small"):
    results.insert(document, "small", text, files)

from pathlib import Path

import pytest

from ecos_jax.study import plan
from ecos_jax.study import tables

_BASE = f"{Path(__file__).parents[2] / 'configs/digits_manual.py'}:smoke"
# Of a method, client and seed, in percent; without mnist of seed 3.
_ACCURACY = {
  ("ecos", "usps", 1): 90,
  ("ecos", "usps", 2): 92,
  ("ecos", "usps", 3): 97,
  ("ecos", "mnist", 1): 80,
  ("ecos", "mnist", 2): 86,
}


def _study(**fields) -> plan.Study:
  return plan.of(
    _BASE,
    grids=(
      {
        "sampling.method": ("ecos",),
        "data.client": ("usps", "mnist"),
        "sampling.budget": (8, 1600),
        "seed": (1, 2, 3),
      },
      {
        "sampling.method": ("local",),
        "data.client": ("usps", "mnist"),
        "seed": (1, 2, 3),
      },
    ),
    **fields,
  )


def _rows(study: plan.Study) -> list[tables.Row]:
  rows = []
  for trial in study.trials():
    method = trial.values["sampling.method"]
    place = ("ecos", trial.values["data.client"], trial.values["seed"])
    if place in _ACCURACY:
      # 1 more with the larger budget, 2 more for local.
      more = {8: 0, 1600: 1, None: 2}[trial.values.get("sampling.budget")]
      rows.append(
        {
          "name": trial.name,
          "values": trial.values,
          "config": {"seed": trial.config.seed},
          "summary": {
            "accuracy": (_ACCURACY[place] + more) / 100,
            "proxy_client_share": None if method == "local" else 0.5,
          },
        }
      )
  return rows


def test_mean_and_deviation_over_seeds():
  study = _study()
  keys = ("sampling.method", "data.client", "sampling.budget")
  found = tables.statistics(study.trials(), _rows(study), keys, "accuracy")
  # 90, 92, 97: mean 93, squares 9 + 1 + 16 = 26, over n - 1 = 2.
  usps = found["ecos", "usps", 8]
  assert usps.mean == pytest.approx(93)
  assert usps.deviation == pytest.approx(13**0.5)
  assert (usps.seeds, usps.planned) == (3, 3)
  # 82, 88: mean 85, deviation 6 / sqrt 2.
  mnist = found["local", "mnist", None]
  assert mnist.mean == pytest.approx(85)
  assert mnist.deviation == pytest.approx(6 / 2**0.5)
  assert (mnist.seeds, mnist.planned) == (2, 3)


def test_the_mean_over_clients_is_taken_for_each_seed_first():
  study = _study()
  keys = ("sampling.method", "sampling.budget")
  found = tables.statistics(
    study.trials(), _rows(study), keys, "accuracy", ("data.client",)
  )
  # Seed 1: 85, seed 2: 89, seed 3 lacks a client and is left out.
  both = found["ecos", 8]
  assert both.mean == pytest.approx(87)
  assert both.deviation == pytest.approx(4 / 2**0.5)
  assert (both.seeds, both.planned) == (2, 3)


def test_equal_values_have_no_deviation():
  study = _study()
  rows = _rows(study)
  for row in rows:
    row["summary"]["accuracy"] = 0.0591
  keys = ("sampling.method", "sampling.budget")
  found = tables.statistics(
    study.trials(), rows, keys, "accuracy", ("data.client",)
  )
  assert found["ecos", 8].deviation == 0
  assert tables.text("accuracy", found["ecos", 8]).startswith("5.9 (")


def test_lines_of_a_table():
  study = _study(labels={"data.client": {"usps": "USPS"}})
  table = plan.Table(
    "t",
    rows=("data.client", "sampling.method"),
    columns="sampling.budget",
    metrics=("accuracy",),
  )
  lines = tables.lines(study, study.trials(), table, _rows(study))
  assert lines == [
    ["client", "method", "8", "1,600"],
    ["USPS", "ecos", "93.0 ± 3.6", "94.0 ± 3.6"],
    # A trial without a budget stands under each.
    ["USPS", "local", "95.0 ± 3.6", "95.0 ± 3.6"],
    ["mnist", "ecos", *(f"{m} ± 4.2 (2 of 3 seeds)" for m in ("83.0", "84.0"))],
    ["mnist", "local", *["85.0 ± 4.2 (2 of 3 seeds)"] * 2],
  ]


def test_trials_that_are_not_done_are_missing_and_metrics_they_lack_empty():
  study = _study()
  table = plan.Table(
    "t",
    rows=("sampling.method", "data.client", "sampling.budget"),
    metrics=("share",),
  )
  rows = [r for r in _rows(study) if r["values"]["data.client"] == "usps"]
  lines = tables.lines(study, study.trials(), table, rows)
  assert ["ecos", "usps", "8", "50.0"] in lines
  assert ["ecos", "mnist", "8", "missing"] in lines
  assert ["local", "usps", "", ""] in lines

import os
from pathlib import Path

from ecos_jax import children
from ecos_jax.benchmark import cases
from ecos_jax.benchmark import peers
from ecos_jax.benchmark import run as run_lib

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = os.environ | {"PYTHONPATH": str(_ROOT)}


def test_a_peer_that_is_not_installed_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(peers, "installed", lambda name: name == "scikit-learn")
  monkeypatch.setenv("PYTHONPATH", str(_ROOT))
  said = []
  run = run_lib.Run(
    [cases.parse("assign", "300x4x3")],
    cases.Options(1, 1 << 20, "hog"),
    only=["scikit-learn", "faiss-cpu"],
    output=tmp_path / "result.json",
    say=said.append,
  )
  run.all()
  assert [row["implementation"] for row in run.rows] == ["scikit-learn"]
  [skipped] = run.skipped
  assert skipped["implementation"] == "faiss-cpu"
  assert any("faiss-cpu is left out: not installed" in line for line in said)


def test_an_implementation_that_fails_says_why(tmp_path):
  job = {
    "case": cases.parse("assign", "30x4x3"),
    "options": cases.Options(1, 1, "hog"),
    "folder": str(tmp_path),
  }
  [(name, i, error)] = run_lib.rounds(job, ["scikit-learn"], _ENVIRONMENT, 1)
  assert (name, i) == ("scikit-learn", 0)
  assert isinstance(error, children.ChildError)
  assert "features.npy" in str(error)

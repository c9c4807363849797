import json
from pathlib import Path
import shutil
import types

import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax import pipeline
from ecos_jax.report import collect
from ecos_jax.report import page


def test_what_is_read_is_what_the_run_left(ecos):
  run = collect.read(ecos)
  chosen = np.load(ecos / "proxy/indices.npy")
  first = next(iter(run.sources))
  assert list(run.sources.values()) == [70, 50]
  assert run.composition[first] == np.sum(chosen < 70)
  assert sum(run.composition.values()) == run.summary.proxy_size == 24
  scores = messages.Response.from_bytes(
    (ecos / "response/response.safetensors").read_bytes()
  ).scores
  np.testing.assert_array_equal(run.clusters.scores, scores / 3)
  assert run.threshold is None
  assert len(run.clusters.votes) == 8
  assert (run.clusters.votes >= 0).all()
  assert run.clusters.taken.sum() == 24
  assert [row["step"] for row in run.curves["model"]] == [1, 2]
  assert run.config.codebook.size == 8


def test_a_run_without_a_query(random):
  run = collect.read(random)
  assert run.clusters is None
  assert sum(run.composition.values()) == 24


def test_runs_are_called_what_tells_them_apart():
  def labels(*paths):
    return collect.labels(
      [
        collect.Run(Path(p), {}, {}, {}, {}, None, {}, None, None, {})
        for p in paths
      ]
    )

  assert labels("/a/runs/demo") == ["demo"]
  assert labels("/a/x/ecos", "/a/x/random") == ["ecos", "random"]
  assert labels("/a/x/ecos", "/a/y/ecos") == ["x/ecos", "y/ecos"]


@pytest.mark.parametrize(
  "name",
  [
    "summary.json",
    "config.json",
    "pool/manifest.json",
    "model/manifest.json",
    "model/metrics.jsonl",
    "bank/bank.json",
    "bank/shard-000000.npy",
    "codebook/centroids.npy",
    "codebook/assignment.npy",
    "response/response.safetensors",
    "proxy/indices.npy",
    "proxy/dataset/proxy-train.array_record-00000",
  ],
)
def test_damage_is_one_clear_error(ecos, tmp_path, name):
  copy = tmp_path / "run"
  shutil.copytree(ecos, copy)
  file = copy / name
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 - 5])
  with pytest.raises(errors.EcosError, match=name.partition("/")[0]):
    page.render([collect.read(copy)])
  if name != "model/metrics.jsonl":
    file.unlink()
    with pytest.raises(errors.EcosError, match=name.partition("/")[0]):
      page.render([collect.read(copy)])


@pytest.mark.parametrize(
  "name",
  [
    "codebook/centroids.npy",
    "codebook/assignment.npy",
    "codebook/sizes.npy",
    "response/response.safetensors",
    "proxy/indices.npy",
  ],
)
def test_a_flipped_bit_is_refused_and_the_advice_works(
  configure, ecos, tmp_path, name
):
  copy = tmp_path / "run"
  shutil.copytree(ecos, copy)
  file = copy / name
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)
  said = rf"{file.parent}/.* is damaged.*: delete the folder {file.parent} to"
  with pytest.raises(errors.EcosError, match=said) as caught:
    collect.read(copy)
  assert file.name in str(caught.value)
  shutil.rmtree(file.parent)
  pipeline.run(configure(), copy)
  collect.read(copy)


def test_a_flipped_bit_in_the_dataset_is_refused(ecos, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(ecos, copy)
  [file] = (copy / "proxy/dataset").glob("*array_record*")
  data = bytearray(file.read_bytes())
  # Within the records; the file ends in padding.
  data[len(bytes(data).rstrip(b"\0")) // 2] ^= 1
  file.write_bytes(data)
  said = f"{copy}/proxy/dataset is not .*: delete the folder {copy}/proxy to"
  with pytest.raises(errors.EcosError, match=said):
    page.render([collect.read(copy)])


def test_a_run_that_is_not_finished_is_refused(ecos, tmp_path):
  with pytest.raises(errors.EcosError, match=r"no summary\.json"):
    collect.read(tmp_path)
  copy = tmp_path / "run"
  shutil.copytree(ecos, copy)
  shutil.rmtree(copy / "model")
  with pytest.raises(
    errors.EcosError, match=r"manifest\.json is missing: delete"
  ):
    collect.read(copy)


def test_another_version_s_files_are_refused(ecos, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(ecos, copy)
  summary = json.loads((copy / "summary.json").read_bytes())
  for changed in ({}, [], summary | {"seconds": {"x": None}}):
    (copy / "summary.json").write_text(json.dumps(changed))
    with pytest.raises(errors.EcosError, match="run python -m"):
      collect.read(copy)


def _summary(**changes):
  fields = {
    "method": "ecos",
    "accuracy": 0.9656,
    "proxy_size": 1000,
    "proxy_client_share": 0.551,
    "epsilon": 0.27601,
    "bytes_down": 29216,
    "bytes_up": 1184,
  }
  return types.SimpleNamespace(**(fields | changes))


def test_a_line_a_run_with_what_was_measured():
  runs = [
    types.SimpleNamespace(path=Path("a"), summary=_summary()),
    types.SimpleNamespace(
      path=Path("b"),
      summary=_summary(method="mak", epsilon=None, accuracy=None),
    ),
  ]
  lines = collect.table(runs).splitlines()
  assert len(lines) == 3
  assert lines[1].split()[:4] == ["a", "ecos", "96.6", "%"]
  assert "29,216" in lines[1]
  assert "unknown" in lines[2]
  assert "not private" in lines[2]

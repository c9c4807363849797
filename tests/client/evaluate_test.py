import hashlib
import os
import subprocess
import sys

from flax import nnx
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from ecos_jax import errors
from ecos_jax.client import evaluate
from ecos_jax.data import pools
from ecos_jax.training import export

_RNG = np.random.default_rng(0)
_IMAGES = _RNG.integers(0, 256, (50, 12, 12, 3), np.uint8)
_CLASSES = 3


class _BrightestColour(nnx.Module):
  """The class of an image is its brightest channel."""

  def __call__(self, images):
    return images.mean((1, 2))


_LABELS = _IMAGES.mean((1, 2)).argmax(-1)
_LABELS[:10] = (_LABELS[:10] + 1) % _CLASSES  # where the model is wrong


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
  path = tmp_path_factory.mktemp("model") / "model.jaxexport"
  export.write(path, _BrightestColour(), 12)
  return path


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_accuracy_of_a_model_known_to_be_right_on_forty(model_path, batch_size):
  model = evaluate.load(model_path)
  data = pools.ArraySource("own", _IMAGES, _LABELS)
  assert evaluate.accuracy(model, data, batch_size) == 0.8


def test_unknown_labels_do_not_count(model_path):
  labels = _LABELS.copy()
  labels[:5] = -1
  data = pools.ArraySource("own", _IMAGES, labels)
  got = evaluate.accuracy(evaluate.load(model_path), data, 16)
  assert got == pytest.approx(40 / 45)


def test_images_are_brought_to_the_size_of_the_model(model_path):
  large = np.repeat(np.repeat(_IMAGES, 2, 1), 2, 2)
  data = pools.ArraySource("own", large, _LABELS)
  assert evaluate.accuracy(evaluate.load(model_path), data, 50) == 0.8


@pytest.mark.parametrize(
  "labels, said",
  [(None, "no sample has a label"), (np.full(50, 3), "label is 3.* 3 classes")],
)
def test_labels_that_do_not_fit_are_refused(model_path, labels, said):
  data = pools.ArraySource("own", _IMAGES, labels)
  with pytest.raises(errors.EcosError, match=f"`data`.*{said}"):
    evaluate.accuracy(evaluate.load(model_path), data, 16)


def _exported(path, function, *shapes, **options):
  exported = jax_export.export(jax.jit(function), **options)(*shapes)
  data = bytes(exported.serialize())
  path.write_bytes(data + hashlib.sha256(data).hexdigest().encode())
  return path


def _refused(path, said):
  with pytest.raises(errors.EcosError, match=f"`model`: .*{said}"):
    evaluate.load(path)


def test_programs_that_are_no_models_are_refused(tmp_path):
  path = tmp_path / "model"
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
  floats = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)

  def logits(images):
    return images.astype(jnp.float32).mean((1, 2))

  evaluate.load(_exported(path, logits, images))
  _refused(_exported(path, logits, floats), "it maps float32")
  _refused(_exported(path, lambda a, b: logits(a), images, images), "")
  _refused(_exported(path, lambda a: logits(a)[0], images), "it maps")
  _refused(_exported(path, logits, images, platforms=["tpu"]), "runs on tpu")


def test_a_program_that_calls_foreign_code_is_refused(tmp_path):
  def logits(images):
    squares = images[..., 0].astype(jnp.float32)
    return jnp.linalg.qr(squares)[0][:, 0]

  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
  path = _exported(tmp_path / "model", logits, images)
  _refused(path, "calls outside StableHLO")


@pytest.mark.parametrize("data", [b"", b"x", bytes(1000), b"\x08" * 5000])
def test_other_files_are_refused(tmp_path, data):
  (tmp_path / "model").write_bytes(data)
  _refused(tmp_path / "model", "damaged")
  _refused(tmp_path, "is not a file")
  _refused(tmp_path / "none", "is not a file")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_truncated_file_is_refused(model_path, data):
  whole = model_path.read_bytes()
  kept = data.draw(st.integers(0, len(whole) - 1))
  cut = model_path.with_name("cut")
  cut.write_bytes(whole[:kept])
  _refused(cut, "damaged")


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
  np.savez(tmp_path / "own.npz", images=_IMAGES, labels=_LABELS)
  (tmp_path / "bad").write_bytes(model_path.read_bytes()[:900])
  code, done = run(tmp_path / "own.npz", model=tmp_path / "bad")
  assert code == 1
  [line] = done.err.splitlines()
  assert line.startswith("error: --model: ")


def test_folders_are_numbers_or_named_by_the_cloud(run, tmp_path):
  """Alphabetical order, without class 0, would shift every label by one."""
  for names in (("0", "1", "2"), ("z", "y", "x")):
    folder = tmp_path / names[0]
    for row in np.flatnonzero(_LABELS > 0):
      file = folder / names[_LABELS[row]] / f"{row}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(_IMAGES[row]).save(file)
  known = _LABELS > 0
  right = np.mean(_IMAGES.mean((1, 2)).argmax(-1)[known] == _LABELS[known])
  said = f"accuracy {100 * right:.1f} %\n"
  numbered, named = tmp_path / "0", tmp_path / "z"
  for arguments in ((numbered,), (named, "--classes=z,y,x")):
    code, done = run(*arguments)
    assert code == 0, done.err
    assert done.out.startswith(said)
    assert "left out" not in done.err
  code, done = run(named)
  assert code == 1
  assert "--classes" in done.err
  Image.fromarray(_IMAGES[0]).save(numbered / "stray.png")
  _, done = run(numbered)
  assert done.out.startswith(said)
  assert "left out" in done.err


def test_the_command_loads_neither_the_trainer_nor_its_libraries(
  model_path, tmp_path
):
  np.savez(tmp_path / "own.npz", images=_IMAGES, labels=_LABELS)
  code = """
import runpy, sys
try:
  runpy.run_module("ecos_jax.client.evaluate", run_name="__main__")
except SystemExit as end:
  assert not end.code
heavy = "flax grain optax orbax tensorflow tensorstore torch opendp".split()
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
  assert done.stdout.startswith("accuracy 80.0 %\n")
  assert "50" not in done.stdout

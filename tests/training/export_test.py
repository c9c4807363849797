import os
import subprocess
import sys

from flax import nnx
import jax
from jax import export as export_lib
import numpy as np
import pytest

from ecos_jax.models import networks
from ecos_jax.training import augment
from ecos_jax.training import export

_IMAGES = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 3), np.uint8)
_OTHER_PROCESS = """
import sys
from jax import export
import numpy as np
with open(sys.argv[1], "rb") as file:
  model = export.deserialize(bytearray(file.read()))
np.save(sys.argv[3], model.call(np.load(sys.argv[2])))
"""


def _model():
  """Returns a network in training mode, with statistics that matter."""
  model = networks.get("convnet_small", 10, nnx.Rngs(0))
  for norm in model.norms:
    norm.mean[...] += 0.1
    norm.var[...] *= 2.0
  return model


def test_another_process_computes_the_same_logits(tmp_path):
  model = _model()
  path = tmp_path / "model.jaxexport"
  export.write(path, model, 28)
  np.save(tmp_path / "images.npy", _IMAGES)
  files = [path, tmp_path / "images.npy", tmp_path / "logits.npy"]
  # Eight devices: the file is not tied to those of the training.
  flags = "--xla_force_host_platform_device_count=8"
  subprocess.run(
    [sys.executable, "-c", _OTHER_PROCESS, *map(str, files)],
    check=True,
    cwd=tmp_path,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
  )
  model.eval()
  np.testing.assert_allclose(
    np.load(tmp_path / "logits.npy"),
    model(augment.normalise(_IMAGES)),
    atol=1e-5,
  )


@pytest.mark.parametrize("name", networks.names())
def test_every_model_runs_on_every_platform(name, tmp_path):
  path = tmp_path / "model.jaxexport"
  # Zeros: initial weights would take most of a minute to draw.
  graph, shapes = nnx.split(
    nnx.eval_shape(lambda: networks.get(name, 7, nnx.Rngs(0)))
  )
  weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  export.write(path, nnx.merge(graph, weights), 28)
  model = export_lib.deserialize(bytearray(path.read_bytes()))
  assert set(model.platforms) == {"cpu", "cuda", "tpu"}
  assert [p.name for p in tmp_path.iterdir()] == ["model.jaxexport"]

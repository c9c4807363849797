import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import encoding
from ecos_jax.client import respond
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.privacy import mechanisms
from tests.models import make_references

TERMS = messages.Terms(10.0, 0.8, 1e-5, "add_remove")
MECHANISM = mechanisms.Mechanism(TERMS)
_REFERENCES = np.load(make_references.FILE)


def _random_weights(path, factor):
  shapes = json.loads(str(_REFERENCES["resnet18_shapes"]))
  tensors = {
    name: factor * make_references.tensor(name, shape)
    for name, shape in shapes.items()
  }
  safetensors_numpy.save_file(tensors, path)
  return str(path)


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("weights")
  return [_random_weights(folder / f"{i}.safetensors", i) for i in (1, 2)]


def _asks(encoder, **changes):
  fields = {
    "centroids": np.zeros((2, encoder.dimension), np.float32),
    "encoder_name": encoder.name,
    "encoder_settings": encoder.message_settings,
    "encoder_digest": encoder.digest,
    "terms": TERMS,
  }
  return messages.Query(**fields | changes)


def test_the_client_builds_the_encoder_of_the_query_from_its_own_weights(files):
  theirs = registry.get("resnet18", image_size=40, weights=files[0])
  query = messages.Query.from_bytes(_asks(theirs).to_bytes())
  encoder = encoding.encoder_of(query, weights=files[0])
  assert encoder.digest == theirs.digest and encoder is not theirs
  assert encoder.image_size == 40


def test_other_weights_are_refused_and_the_wanted_ones_named(files):
  theirs, own = (
    registry.get("resnet18", image_size=40, weights=file) for file in files
  )
  wanted, here = (e.settings["weights"] for e in (theirs, own))
  assert wanted != here
  message = (
    rf"encoder_digest: .*{wanted} \(1\.safetensors\).*2\.safetensors.*{here}"
    ".*--weights"
  )
  with pytest.raises(messages.ProtocolError, match=message):
    encoding.encoder_of(_asks(theirs), weights=files[1])
  # Those of the simulation too.
  source = pools.ArraySource("mine", np.zeros((1, 40, 40, 3), np.uint8))
  with pytest.raises(messages.ProtocolError, match=message):
    respond.respond(_asks(theirs).to_bytes(), source, MECHANISM, encoder=own)


def test_a_query_makes_the_client_load_neither_code_nor_files(
  files, tmp_path, monkeypatch
):
  trace = tmp_path / "trace"
  (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w')")
  monkeypatch.syspath_prepend(tmp_path)
  encoder = registry.get("resnet18", image_size=40, weights=files[0])
  settings = encoder.settings
  for changes, message in (
    ({"encoder_name": "evil:run"}, "unknown encoder evil:run"),
    ({"encoder_name": "identity"}, "not for identity"),
    ({"encoder_settings": {}}, r"settings\.image_size"),
    ({"encoder_settings": settings | {"image_size": 10**6}}, "image_size"),
    ({"encoder_settings": settings | {"dtype": "object"}}, "dtype"),
  ):
    query = _asks(encoder, **changes)
    with pytest.raises(errors.EcosError, match=message):
      encoding.encoder_of(query, weights=files[0])
  with pytest.raises(errors.EcosError, match=r"1\.safetensors: .*--weights"):
    encoding.encoder_of(_asks(encoder))
  assert not trace.exists()
  # A path in the settings is a text like any other.
  query = _asks(encoder, encoder_settings=settings | {"weights": files[1]})
  built = encoding.encoder_of(query, weights=files[0])
  assert built.settings["weights"] == settings["weights"]

import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import coverage
from ecos_jax.client import encoding
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from tests.client.queries import query_of
from tests.models import make_references

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


def _query(encoder, **changes):
  return query_of(np.zeros((2, encoder.dimension)), encoder, **changes)


def test_the_client_builds_the_encoder_of_the_query_from_its_own_weights(files):
  theirs = registry.get("resnet18", image_size=40, weights=files[0])
  query = messages.Query.from_bytes(_query(theirs).to_bytes())
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
    ".*`weights`"
  )
  with pytest.raises(messages.ProtocolError, match=message):
    encoding.encoder_of(_query(theirs), weights=files[1])
  # Those of the simulation too.
  source = pools.ArraySource("mine", np.zeros((1, 40, 40, 3), np.uint8))
  with pytest.raises(messages.ProtocolError, match=message):
    encoding.opened(_query(theirs), source, own).features()


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
    query = _query(encoder, **changes)
    with pytest.raises(errors.EcosError, match=message):
      encoding.encoder_of(query, weights=files[0])
  with pytest.raises(errors.EcosError, match=r"1\.safetensors: .*`weights`"):
    encoding.encoder_of(_query(encoder))
  assert not trace.exists()
  # A path in the settings is a text like any other.
  query = _query(encoder, encoder_settings=settings | {"weights": files[1]})
  built = encoding.encoder_of(query, weights=files[0])
  assert built.settings["weights"] == settings["weights"]


def test_images_become_the_features_of_the_query_s_encoder(
  images, features, tmp_path
):
  np.save(tmp_path / "f.npy", features)
  stored = pools.open_source(f"features:{tmp_path}/f.npy")
  source = pools.ArraySource("mine", images)
  query = query_of(features[:5])
  for data, batch_size in (
    (source, 1000),
    (source, 8),
    (images, 8),
    (features, 8),
    (stored, 8),
  ):
    blocks = list(encoding.opened(query, data, batch_size=batch_size).blocks())
    got = encoding.opened(query, data, batch_size=batch_size).features()
    np.testing.assert_array_equal(np.concatenate(blocks), got)
    # The encoder's batches differ by rounding.
    np.testing.assert_allclose(got, features, atol=1e-6)
    np.testing.assert_array_equal(
      coverage.nearest(got, query.centroids),
      coverage.nearest(features, query.centroids),
    )
  assert encoding.opened(query, images[:0]).features().shape == (0, 72)


def test_an_image_changes_no_other_image_s_features(images):
  # Bit for bit: the encoder runs on batches of one shape, and the place of an
  # image in its batch must not matter.
  query = _query(registry.get("hog"))
  features = encoding.opened(query, images, batch_size=16).features()
  for row in (0, 1, 15, 16, 36):
    others = np.delete(images, row, axis=0)
    fewer = encoding.opened(query, others, batch_size=16).features()
    np.testing.assert_array_equal(fewer, np.delete(features, row, axis=0))
  order = np.random.default_rng(1).permutation(37)
  shuffled = encoding.opened(query, images[order], batch_size=16).features()
  np.testing.assert_array_equal(shuffled, features[order])


def test_an_encoder_that_differs_is_refused(images, tmp_path):
  for changes, said in (
    ({"encoder_digest": "0" * 64}, "encoder_digest"),
    ({"encoder_name": "unknown"}, "encoder_name: unknown encoder"),
    ({"centroids": np.zeros((2, 3), np.float32)}, "d = 3"),
  ):
    query = query_of(np.zeros((2, 72)), **changes)
    with pytest.raises(errors.EcosError, match=said):
      encoding.opened(query, images).features()
  np.save(tmp_path / "wide.npy", np.zeros((2, 3)))
  wide = pools.open_source(f"features:{tmp_path}/wide.npy")
  with pytest.raises(errors.EcosError, match=r"`data` must .* \[n, 72\]"):
    encoding.opened(_query(registry.get("hog")), wide).features()

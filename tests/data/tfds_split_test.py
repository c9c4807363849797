import json
import sys

import numpy as np
from PIL import Image
import pytest

from ecos_jax import errors
from ecos_jax.data import images
from ecos_jax.data import tfds_split
from tests.data import pools_test

_FILE = images.png(Image.fromarray(np.full((8, 8, 3), 7, np.uint8)))
_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"


def _rewritten(folder, change):
  [path] = folder.rglob("features.json")
  content = json.loads(path.read_text())
  change(content["featuresDict"]["features"])
  path.write_text(json.dumps(content))


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_class_that_tfds_would_import_is_refused(tmp_path, key, monkeypatch):
  (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
  monkeypatch.syspath_prepend(tmp_path)
  pools_test.write_tfds(tmp_path / "data", [_FILE])
  _rewritten(
    tmp_path, lambda features: features["label"].update({key: "evil_module.F"})
  )
  with pytest.raises(errors.EcosError, match=r"features\.json.*evil_module\.F"):
    tfds_split.TfdsSource("shapes", "train", str(tmp_path / "data"))
  assert "evil_module" not in sys.modules


def test_other_images_of_a_sample_are_not_decoded(tmp_path):
  """TFDS would decode them, in any format that Pillow knows."""
  pools_test.write_tfds(tmp_path, [_FILE], thumb=_POSTSCRIPT)
  source = tfds_split.TfdsSource("shapes", "train", str(tmp_path))
  assert (source.images(np.arange(1), 8) == 7).all()

  def nest(features):
    features["all"] = {
      "pythonClassName": (
        "tensorflow_datasets.core.features.sequence_feature.Sequence"
      ),
      "sequence": {"feature": features.pop("thumb")},
    }

  _rewritten(tmp_path, nest)
  with pytest.raises(errors.EcosError, match="images must be features of thei"):
    tfds_split.TfdsSource("shapes", "train", str(tmp_path))


def test_a_damaged_description_is_told(tmp_path):
  pools_test.write_tfds(tmp_path, [_FILE])
  [path] = tmp_path.rglob("features.json")
  for text in ("[" * 100_000, "{", "[]", '{"featuresDict": 3}'):
    path.write_text(text)
    with pytest.raises(errors.EcosError, match=r"cannot use .*features\.json"):
      tfds_split.TfdsSource("shapes", "train", str(tmp_path))

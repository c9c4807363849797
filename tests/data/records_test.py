import pytest

from ecos_jax import errors
from ecos_jax.data import pools
from tests.data import made_images


def _write(path, levels):
  files = {f"{level}.png": made_images.png(level) for level in levels}
  path.write_bytes(made_images.tar(files))


def test_the_same_content_elsewhere_has_the_same_digest(tmp_path):
  for folder in "ab":
    (tmp_path / folder).mkdir()
    _write(tmp_path / folder / "0.tar", range(4))
  a, b = (pools.open_source(f"webdataset:{tmp_path}/{f}/0.tar") for f in "ab")
  assert a.digest == b.digest
  _write(tmp_path / "b/0.tar", range(1, 5))
  assert pools.open_source(f"webdataset:{tmp_path}/b/0.tar").digest != a.digest


def test_a_client_may_have_no_image(tmp_path):
  _write(tmp_path / "0.tar", [])
  text = f"webdataset:{tmp_path}"
  assert len(pools.open_source(text, may_be_empty=True)) == 0
  with pytest.raises(errors.EcosError, match="holds no image"):
    pools.open_source(text)
  with pytest.raises(errors.EcosError, match="twice"):
    pools.open_source(text, classes=("a", "a"))

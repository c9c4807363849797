import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.data import pools
from ecos_jax.data import tar_shards
from tests.data import made_images


def _write(path, levels):
  files = {f"{level}.png": made_images.png(level) for level in levels}
  path.write_bytes(made_images.tar(files))


def test_only_new_and_changed_containers_are_read_again(tmp_path, monkeypatch):
  scanned = []
  scan = tar_shards.TarShard.scan

  def counted(self):
    scanned.append(self.name)
    return scan(self)

  monkeypatch.setattr(tar_shards.TarShard, "scan", counted)
  listing = tmp_path / "listing.json"
  for i in range(3):
    _write(tmp_path / f"{i}.tar", range(10 * i, 10 * i + 10))

  def opened():
    scanned.clear()
    text = f"webdataset:{tmp_path}"
    return pools.open_source(text, listing=listing)

  first = opened()
  assert scanned == ["0.tar", "1.tar", "2.tar"]
  assert opened().digest == first.digest and not scanned
  _write(tmp_path / "3.tar", range(30, 35))
  grown = opened()
  assert scanned == ["3.tar"]
  assert len(grown) == 35 and grown.digest != first.digest
  assert (grown.fingerprints()[:30] == first.fingerprints()).all()
  _write(tmp_path / "1.tar", range(5))
  changed = opened()
  assert scanned == ["1.tar"]
  assert changed.images(np.arange(10, 15), 8)[:, 4, 4, 0].tolist() == [
    *range(5)
  ]
  with pytest.raises(errors.EcosError, match=r"1\.tar/10\.png of .* changed"):
    grown.images(np.array([10]), 8)
  (tmp_path / "1.tar").unlink()
  with pytest.raises(errors.EcosError, match=r"cannot read from 1\.tar"):
    grown.images(np.array([10]), 8)
  listing.write_text("[]")
  assert len(opened()) == 25 and len(scanned) == 3

import io
from pathlib import Path
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from ecos_jax import errors
from ecos_jax.data import folder
from ecos_jax.data import pools
from ecos_jax.data import proxy

_RNG = np.random.default_rng(0)


def _pool():
  digits = _RNG.integers(0, 256, (20, 28, 28, 3), np.uint8)
  grey = _RNG.integers(0, 256, (5, 16, 12), np.uint8)
  return pools.Pool(
    [
      pools.ArraySource("digits", digits, np.arange(20) % 10),
      pools.ArraySource("grey", grey),
    ]
  )


def _write(directory, pool, indices):
  clusters = np.arange(len(indices), dtype=np.int32) + 7
  labels = pool.labels(indices)
  proxy.write(directory, pool, indices, clusters, labels)
  return clusters, labels


def test_round_trip_with_images_of_several_sizes(tmp_path):
  pool, indices = _pool(), np.array([3, 22, 0, 19, 24])
  clusters, labels = _write(tmp_path / "proxy", pool, indices)
  source = proxy.open_proxy(tmp_path / "proxy")
  assert len(source) == 5
  for row, index in enumerate(indices):
    item = source[row]
    assert item["image"].dtype == np.uint8
    expected = Image.open(io.BytesIO(pool.encoded(index))).convert("RGB")
    np.testing.assert_array_equal(item["image"], np.asarray(expected))
    assert (item["index"], item["label"]) == (index, labels[row])
    assert item["cluster"] == clusters[row]
    assert item["source"].decode() == ("digits" if index < 20 else "grey")
  assert source[1]["label"] == -1
  assert source[1]["image"].shape == (16, 12, 3)


def test_rgb_files_are_the_pools_bytes(tmp_path):
  files = []
  for suffix in ("png", "jpg", "webp"):
    files.append(tmp_path / "pool" / f"image.{suffix}")
    files[-1].parent.mkdir(exist_ok=True)
    pixels = _RNG.integers(0, 256, (9, 11, 3), np.uint8)
    Image.fromarray(pixels).save(files[-1])
  pool = pools.Pool([folder.FolderSource(tmp_path / "pool")])
  _write(tmp_path / "proxy", pool, np.arange(3))
  source = tfds.builder_from_directory(str(tmp_path / "proxy")).as_data_source(
    "train", decoders={"image": tfds.decode.SkipDecoding()}
  )
  stored = {source[i]["image"] for i in range(3)}
  assert stored == {file.read_bytes() for file in files}


def test_16_bits_are_scaled_not_clipped(tmp_path):
  grey = _RNG.integers(0, 256, (9, 11), np.uint8)
  (tmp_path / "pool").mkdir()
  Image.fromarray(grey.astype(np.uint16) << 8).save(tmp_path / "pool/a.png")
  pool = pools.Pool([folder.FolderSource(tmp_path / "pool")])
  _write(tmp_path / "proxy", pool, np.arange(1))
  image = proxy.open_proxy(tmp_path / "proxy")[0]["image"]
  np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, -1))


def test_replaces_what_is_there_and_leaves_nothing_else(tmp_path):
  pool = _pool()
  _write(tmp_path / "proxy", pool, np.arange(10))
  _write(tmp_path / "proxy", pool, np.arange(4))
  assert len(proxy.open_proxy(tmp_path / "proxy")) == 4
  assert [path.name for path in tmp_path.iterdir()] == ["proxy"]


def test_a_failed_write_leaves_nothing(tmp_path):
  class Broken(pools.ArraySource):
    def encoded(self, index):
      if index == 2:
        raise OSError("gone")
      return super().encoded(index)

  images = np.zeros((4, 8, 8, 3), np.uint8)
  pool = pools.Pool([Broken("broken", images)])
  with pytest.raises(OSError, match="gone"):
    _write(tmp_path / "proxy", pool, np.arange(4))
  assert not list(tmp_path.iterdir())


def test_empty_and_uneven_are_refused(tmp_path):
  nothing = np.array([], np.int64)
  with pytest.raises(errors.EcosError, match=r"sampling\.budget"):
    proxy.write(tmp_path / "proxy", _pool(), nothing, nothing, nothing)
  with pytest.raises(errors.EcosError, match="3 indices, 2 clusters"):
    proxy.write(
      tmp_path / "proxy", _pool(), np.arange(3), np.zeros(2), np.zeros(3)
    )
  assert not list(tmp_path.iterdir())


def test_unreadable_is_named(tmp_path):
  with pytest.raises(errors.EcosError, match="nowhere"):
    proxy.open_proxy(tmp_path / "nowhere")


def test_neither_tensorflow_nor_torch(tmp_path):
  script = f"""
import sys
from pathlib import Path
import numpy as np
from ecos_jax.data import loader, pools, proxy
images = np.zeros((4, 8, 8, 3), np.uint8)
pool = pools.Pool([pools.ArraySource("a", images)])
indices = np.arange(4)
directory = Path({str(tmp_path)!r}) / "proxy"
proxy.write(directory, pool, indices, indices, indices)
source = loader.proxy_source(directory, 8)
next(loader.batches(source, 2, seed=0))
assert not {{"tensorflow", "torch"}} & set(sys.modules)
"""
  subprocess.run(
    [sys.executable, "-c", script],
    check=True,
    cwd=Path(__file__).parents[2],
  )

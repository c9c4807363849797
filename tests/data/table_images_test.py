import json
import sys
import types

import fsspec
import numpy as np
import pyarrow
import pytest

from ecos_jax import errors
from ecos_jax.data import pools
from ecos_jax.data import table_images
from tests.data import made_images

_NAMES = {
  "huggingface": json.dumps(
    {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
  )
}


@pytest.fixture(params=["parquet", "arrow", "bucket"])
def pattern(request, tmp_path, bucket):
  for part in range(3):
    levels = range(100 * part, 100 * (part + 1))
    made = made_images.table(levels, [i % 2 for i in levels], _NAMES)
    name = f"t-{part}"
    if request.param == "arrow":
      made_images.write_arrow(made, tmp_path / f"{name}.arrow")
      continue
    data = made_images.write_parquet(made)
    if request.param == "parquet":
      (tmp_path / f"{name}.parquet").write_bytes(data)
    else:
      fsspec.filesystem("memory").pipe(f"{bucket}/{name}.parquet", data)
  return f"{bucket}/*.parquet" if request.param == "bucket" else str(tmp_path)


def test_images_are_read_by_row(pattern):
  source = pools.open_source(f"parquet:{pattern}")
  assert (len(source), source.classes) == (300, 2)
  for indices in ([299, 5, 150, 5], range(90, 210), [0]):
    indices = np.array(indices)
    images = source.images(indices, 12)
    assert images[:, 5, 5, 0].tolist() == (indices % 256).tolist()
  assert source.labels(np.arange(4)).tolist() == [0, 1, 0, 1]
  assert source.encoded(299) == made_images.png(299)
  assert source.keys(np.array([101]))[0].rpartition("/")[2] == "1"
  named = pools.open_source(f"parquet:{pattern}", classes=("dog",))
  assert named.labels(np.arange(4)).tolist() == [-1, 0, -1, 0]


def test_what_is_no_image_is_left_out(tmp_path):
  rows = [
    {"bytes": made_images.png(1), "path": None},
    {"bytes": None, "path": "/etc/passwd"},
    {"bytes": b"no image", "path": None},
    None,
  ]
  made = pyarrow.table({"image": pyarrow.array(rows, made_images.IMAGE)})
  whole = made_images.write_parquet(made)
  (tmp_path / "a.parquet").write_bytes(whole)
  (tmp_path / "b.parquet").write_bytes(whole[:-9])
  source = pools.open_source(f"parquet:{tmp_path}")
  assert source.keys(np.arange(len(source))) == ["a.parquet/0"]
  names = [entry.name for entry in source.unreadable]
  assert names == [*(f"a.parquet/{i}" for i in (1, 2, 3)), "b.parquet"]


def test_a_damaged_table_gives_an_error_at_worst(tmp_path):
  """Bytes of a table are changed at random: no crash, and no other image."""
  whole = made_images.write_parquet(made_images.table(range(40)))
  made_images.write_arrow(made_images.table(range(40)), tmp_path / "whole")
  random = np.random.default_rng(0)
  good = {made_images.png(level) for level in range(40)}
  for kind, data in (
    ("parquet", whole),
    ("arrow", (tmp_path / "whole").read_bytes()),
  ):
    for trial in range(60):
      bad = bytearray(data)
      for place in random.integers(len(bad), size=3):
        bad[place] = random.integers(256)
      path = tmp_path / f"{trial}.{kind}"
      path.write_bytes(bad)
      try:
        source = table_images.open_images(str(path), None)
      except errors.EcosError:
        continue
      for row in range(len(source)):
        data_read = source.encoded(row)
        assert data_read in good or len(data_read) > 0


def test_the_hub_is_read_as_parquet(tmp_path, monkeypatch):
  """With a stub of the library: there is no network here."""
  asked = {}

  def snapshot_download(name, **options):
    asked.update(options, name=name)
    folder = tmp_path / "default/train"
    folder.mkdir(parents=True)
    data = made_images.write_parquet(made_images.table(range(6)))
    (folder / "0000.parquet").write_bytes(data)
    return str(tmp_path)

  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(errors.EcosError, match=r"ecos_jax\[hub,parquet\]"):
    pools.open_source("hub:owner/name:train")
  stub = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
  assert len(pools.open_source("hub:owner/name:train")) == 6
  assert asked["name"] == "owner/name"
  assert asked["allow_patterns"] == "default/train/*.parquet"

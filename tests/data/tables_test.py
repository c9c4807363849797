import json
import sys
import types

import fsspec
import numpy as np
import pyarrow
import pytest

from ecos_jax import errors
from ecos_jax.data import pools
from ecos_jax.data import tables
from tests.data import made_images

_NAMES = {
  "huggingface": json.dumps(
    {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
  )
}


def _arrow(made, path, rows=9):
  with (
    pyarrow.OSFile(str(path), "wb") as file,
    pyarrow.ipc.new_stream(file, made.schema) as writer,
  ):
    writer.write_table(made, max_chunksize=rows)


@pytest.fixture(params=["parquet", "arrow", "bucket"])
def pattern(request, tmp_path, bucket):
  for part in range(3):
    levels = range(100 * part, 100 * (part + 1))
    made = made_images.table(levels, [i % 2 for i in levels], _NAMES)
    name = f"t-{part}"
    if request.param == "arrow":
      _arrow(made, tmp_path / f"{name}.arrow")
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


def test_a_column_is_named_if_several_may_be_it(tmp_path):
  made = made_images.table(range(3))
  made = made.append_column(
    "mask", made["image"].combine_chunks().field("bytes")
  )
  (tmp_path / "t.parquet").write_bytes(made_images.write_parquet(made))
  with pytest.raises(errors.EcosError, match="image, mask: name one, as PATH#"):
    pools.open_source(f"parquet:{tmp_path}")
  for column in ("image", "mask"):
    assert len(pools.open_source(f"parquet:{tmp_path}#{column}")) == 3
  with pytest.raises(
    errors.EcosError, match="no column other, but image, mask"
  ):
    pools.open_source(f"parquet:{tmp_path}#other")


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
  _arrow(made_images.table(range(40)), tmp_path / "whole")
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
        source = tables.open_images(str(path), None)
      except errors.EcosError:
        continue
      for row in range(len(source)):
        data_read = source.encoded(row)
        assert data_read in good or len(data_read) > 0


def test_a_split_of_a_saved_dataset(tmp_path):
  for split in ("train", "test"):
    folder = tmp_path / split
    folder.mkdir()
    _arrow(made_images.table(range(5)), folder / "data-00000-of-00001.arrow")
    # What datasets.map leaves beside it.
    _arrow(made_images.table(range(9)), folder / "cache-1.arrow")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
  (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  assert len(pools.open_source(f"parquet:{tmp_path}/train")) == 5
  with pytest.raises(errors.EcosError, match="splits: name one of test, train"):
    pools.open_source(f"parquet:{tmp_path}")


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


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  for kind in ("parquet", "features"):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(errors.EcosError, match=r"ecos_jax\[parquet\]"):
      pools.open_source(f"{kind}:{tmp_path}/a.parquet")

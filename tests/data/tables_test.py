import json
import sys

import pytest

from ecos_jax import errors
from ecos_jax.data import pools
from tests.data import made_images


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


def test_a_split_of_a_saved_dataset(tmp_path):
  for split in ("train", "test"):
    folder = tmp_path / split
    folder.mkdir()
    made_images.write_arrow(
      made_images.table(range(5)), folder / "data-00000-of-00001.arrow"
    )
    # What datasets.map leaves beside it.
    made_images.write_arrow(
      made_images.table(range(9)), folder / "cache-1.arrow"
    )
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
  (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  assert len(pools.open_source(f"parquet:{tmp_path}/train")) == 5
  with pytest.raises(errors.EcosError, match="splits: name one of test, train"):
    pools.open_source(f"parquet:{tmp_path}")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  for kind in ("parquet", "features"):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(errors.EcosError, match=r"ecos_jax\[parquet\]"):
      pools.open_source(f"{kind}:{tmp_path}/a.parquet")

import fsspec
import numpy as np
import pyarrow
import pytest

from ecos_jax import errors
from ecos_jax.data import features
from ecos_jax.data import pools
from tests.data import made_images


def _lists(features):
  return pyarrow.table(
    {
      "id": list(range(len(features))),
      "vector": pyarrow.array(
        features.tolist(), pyarrow.list_(pyarrow.float32())
      ),
    }
  )


def test_other_files_of_features(tmp_path, bucket):
  memory = fsspec.filesystem("memory")
  expected = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
  np.savez(tmp_path / "a.npz", features=expected, other=np.zeros(3))
  np.save(tmp_path / "a.npy", expected)
  data = made_images.write_parquet(_lists(expected))
  memory.pipe(f"{bucket}/a.npy", (tmp_path / "a.npy").read_bytes())
  memory.pipe(f"{bucket}/a.parquet", data)
  (tmp_path / "p").mkdir()
  (tmp_path / "p/a.parquet").write_bytes(data)
  indices = np.array([39, 0, 3, 3, 4, 12])
  for place in (
    f"{tmp_path}/a.npz",
    f"{tmp_path}/p",
    f"{tmp_path}/p/a.parquet#vector",
    f"{bucket}/a.npy",
    f"{bucket}/*.parquet",
  ):
    source = pools.open_source(f"features:{place}")
    assert (len(source), source.dimension) == (40, 4)
    np.testing.assert_array_equal(source.features(indices), expected[indices])
    assert source.keys(indices[:1])[0].endswith("/39")


def test_lists_of_other_lengths_are_refused(tmp_path):
  table = pyarrow.table({"v": [[1.0, 2.0], [1.0], [1.0, 2.0, 3.0]]})
  (tmp_path / "a.parquet").write_bytes(made_images.write_parquet(table))
  source = features.FeatureSource(tmp_path / "a.parquet")
  with pytest.raises(errors.EcosError, match="no list of 2 numbers"):
    source.features(np.arange(3))
  (tmp_path / "b.parquet").write_bytes(
    made_images.write_parquet(made_images.table(range(2)))
  )
  with pytest.raises(errors.EcosError, match="no column holds features"):
    features.FeatureSource(tmp_path / "b.parquet")


@pytest.mark.parametrize(
  "array", [np.zeros((3, 4), int), np.zeros(3), np.zeros((1237, 2, 2))]
)
def test_refuses_other_arrays_and_tells_no_count(tmp_path, array):
  np.save(tmp_path / "x.npy", array)
  with pytest.raises(errors.EcosError, match=r"x\.npy must hold") as caught:
    features.FeatureSource(tmp_path / "x.npy")
  assert "1237" not in str(caught.value)


def _header(text):
  text = text.encode().ljust(118) + b"\n"
  return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
  "text",
  [
    "((((((((",
    "  x\n y",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 8)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (10**30, 8)}",
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 30}, 8)}}",
  ],
)
def test_a_damaged_header_is_told(tmp_path, text):
  (tmp_path / "x.npy").write_bytes(_header(text) + bytes(64))
  with pytest.raises(errors.EcosError, match=r"x\.npy cannot be read as f"):
    features.FeatureSource(tmp_path / "x.npy")
  with pytest.raises(errors.EcosError, match=r"cannot read .*x\.npy"):
    pools.open_source(f"images:{tmp_path / 'x.npy'}")

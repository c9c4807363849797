import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.data import lists
from ecos_jax.data import pools
from ecos_jax.data import proxy
from tests.data import made_images


@pytest.fixture
def pool(tmp_path):
  for shard in "ab":
    files = {f"{i}.png": made_images.png(i) for i in range(4)}
    (tmp_path / f"{shard}.tar").write_bytes(made_images.tar(files))
  array = pools.ArraySource("array", np.zeros((3, 4, 4), np.uint8))
  return pools.Pool([pools.open_source(f"webdataset:{tmp_path}"), array])


def _found(tmp_path, pool, text):
  path = tmp_path / "list"
  path.write_text(text)
  rows, missing = lists.find(lists.read(str(path)), pool)
  return rows.tolist(), missing


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("2\n0\n99\n", ([0, 2], 1)),
    ("b.tar/1.png\r\na.tar/3.png\nnone.png", ([3, 5], 1)),
    ("index,note\n7,x\n7,y\n", ([7], 0)),
    ("note,key\n,a.tar/0.png\n", ([0], 0)),
    ('source,key\narray,1\narray,"a.tar/1.png"\n', ([9], 1)),
  ],
)
def test_lists_name_samples(tmp_path, pool, text, expected):
  assert _found(tmp_path, pool, text) == expected


def test_the_index_of_a_proxy_is_a_list(tmp_path, pool):
  indices = np.array([10, 2, 5])
  proxy.write_csv(
    tmp_path / "index.csv",
    *(pool, indices, np.array([1, 1, -1]), np.array([1.5, 0.5, 1.0])),
    ranks=np.array([2, 0, 1]),
    scores=np.array([3, -4]),
  )
  name = pool.source_names[0]
  assert (tmp_path / "index.csv").read_text().splitlines() == [
    "rank,index,source,key,cluster,weight,score",
    f"0,2,{name},a.tar/2.png,1,0.5,-4",
    f"1,5,{name},b.tar/1.png,,1,",
    "2,10,array,2,1,1.5,-4",
  ]
  listed = lists.read(str(tmp_path / "index.csv"))
  rows, missing = lists.find(listed, pool)
  assert (rows.tolist(), missing) == ([2, 5, 10], 0)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"index\nx\n", b"key\n"])
def test_what_is_no_list_is_refused(tmp_path, data):
  (tmp_path / "list").write_bytes(data)
  with pytest.raises(errors.EcosError, match=r"list (is no list|names no)"):
    lists.read(str(tmp_path / "list"))
  with pytest.raises(errors.EcosError, match="none is no list"):
    lists.read(str(tmp_path / "none"))

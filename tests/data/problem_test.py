import numpy as np
from PIL import Image
import pytest

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.data import problem


@pytest.fixture(name="data")
def _data(tmp_path):
  """A pool in two folders of one name, and a client's."""
  rng = np.random.default_rng(0)
  for name in ("a/train/10", "a/train/9", "b/train/cat", "own/cat"):
    for i in range(2):
      path = tmp_path / name / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
      Image.fromarray(pixels).save(path)
  return config_lib.Data(
    sources=(f"folder:{tmp_path}/a/train", f"folder:{tmp_path}/b/train"),
    client_data=f"folder:{tmp_path}/own",
  )


def test_folders_of_numbers_are_no_classes_unless_the_user_says_so(data):
  """A downloader numbers its shards, a camera its days."""
  loaded = problem.load(data, 0)
  assert (loaded.classes, loaded.class_names) == (0, ())
  assert set(loaded.pool.labels(np.arange(6)).tolist()) == {-1}
  data.classes = ("numbers",)
  loaded = problem.load(data, 0)
  assert (loaded.classes, loaded.class_names) == (11, ())
  assert loaded.pool.labels(np.arange(6)).tolist() == [10, 10, 9, 9, -1, -1]


def test_the_folders_of_the_pool_are_the_classes_if_the_user_says_so(data):
  data.classes = ("folders",)
  loaded = problem.load(data, 0)
  assert loaded.class_names == ("9", "10", "cat")
  assert loaded.pool.labels(np.arange(6)).tolist() == [1, 1, 0, 0, 2, 2]
  assert loaded.pool.class_sizes(3) == [2, 2, 2]
  # The client's are those of the pool, and not its own.
  assert loaded.client.labels(np.arange(2)).tolist() == [2, 2]
  assert loaded.pool.source_names == ("train", "train:2")


def test_folders_that_are_none_are_refused(data, tmp_path):
  data.classes = ("folders",)
  data.sources = (f"folder:{tmp_path}/own/cat",)
  with pytest.raises(errors.EcosError, match="no folder of the pool has"):
    problem.load(data, 0)
  np.save(tmp_path / "x.npy", np.zeros((3, 4, 4, 3), np.uint8))
  data.sources = (f"images:{tmp_path}/x.npy",)
  with pytest.raises(errors.EcosError, match="=folders: x is no folder"):
    problem.load(data, 0)

import fsspec
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.data import pools
from tests.data import made_images


def test_images_in_a_bucket(bucket):
  memory = fsspec.filesystem("memory")
  for i in range(12):
    memory.pipe(f"{bucket}/c{i % 2}/{i}.png", made_images.png(i))
  memory.pipe(f"{bucket}/c0/1.txt", b"text")
  memory.pipe(f"{bucket}/c0/1.jpg", b"no image")
  source = pools.open_source(f"folder:{bucket}", classes=("c1", "c0"))
  order = [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
  rows = np.arange(12)
  assert source.images(rows, 8)[:, 4, 4, 0].tolist() == order
  assert source.labels(rows).tolist() == [1] * 6 + [0] * 6
  assert source.keys(rows)[5] == "c0/10.png"
  assert [entry.name for entry in source.unreadable] == ["c0/1.jpg"]
  assert source.others == {".txt": 1}


def test_an_empty_folder_is_refused(bucket):
  fsspec.filesystem("memory").pipe(f"{bucket}/1.txt", b"text")
  with pytest.raises(errors.EcosError, match=r"holds no image .* 1 \.txt"):
    pools.open_source(f"folder:{bucket}")
  assert len(pools.open_source(f"folder:{bucket}", may_be_empty=True)) == 0


def test_folders_are_numbers_if_asked(bucket):
  fsspec.filesystem("memory").pipe(f"{bucket}/2/0.png", made_images.png(0))
  zero = np.zeros(1, int)
  for classes, label in ((None, -1), (("numbers",), 2), (("a",), -1)):
    source = pools.open_source(f"folder:{bucket}", classes=classes)
    assert source.labels(zero).tolist() == [label]

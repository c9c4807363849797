import io
import tarfile

import fsspec
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax.data import pools
from ecos_jax.data import tar_shards
from tests.data import made_images


def _shard(numbers, classes=True):
  files = {}
  for n in numbers:
    files[f"d/{n:05}.png"] = made_images.png(n)
    if classes:
      files[f"d/{n:05}.cls"] = str(n % 3).encode()
    files[f"d/{n:05}.json"] = b'{"caption": "..."}'
  return made_images.tar(files)


def test_images_are_in_the_order_of_shards_and_samples(tmp_path):
  for s in range(11):
    (tmp_path / f"s-{s}.tar").write_bytes(_shard(range(4 * s, 4 * s + 4)))
  source = pools.open_source(f"webdataset:{tmp_path}/s-{{0..10}}.tar")
  indices = np.array([43, 0, 9, 9])
  images = source.images(indices, 12)
  assert images[:, 5, 5, 0].tolist() == [43, 0, 9, 9]
  assert (len(source), source.classes) == (44, 3)
  assert source.labels(indices).tolist() == [1, 0, 0, 0]
  assert source.keys(indices)[0] == "s-10.tar/d/00043.png"
  assert source.encoded(40) == made_images.png(40)
  again = pools.open_source(f"webdataset:{tmp_path}")
  assert again.digest == source.digest


def test_a_bucket_holds_the_same_source(tmp_path, bucket):
  data = _shard(range(5))
  (tmp_path / "a.tar").write_bytes(data)
  fsspec.filesystem("memory").pipe(f"{bucket}/a.tar", data)
  here = pools.open_source(f"webdataset:{tmp_path}/a.tar")
  there = pools.open_source(f"webdataset:{bucket}/a.tar")
  assert there.digest == here.digest
  rows = np.arange(5)
  assert np.array_equal(there.images(rows, 8), here.images(rows, 8))
  assert here.fingerprints().tolist() == there.fingerprints().tolist()


def test_classes_by_name_and_in_json(tmp_path):
  files = {
    "0.png": made_images.png(0),
    "0.cls": b"cat\n",
    "1.png": made_images.png(1),
    "1.json": b'{"label": "dog"}',
    "2.png": made_images.png(2),
    "2.json": b'{"label": true}',
    "3.png": made_images.png(3),
    "3.cls": b"\xff",
    "4.json": b'{"label": "cat"}',
    "7.png": made_images.png(7),
    "7.cls": b"1",
    "5.JPG": made_images.png(5),
    "5.seg.png": made_images.png(50),
  }
  (tmp_path / "a.tar").write_bytes(made_images.tar(files))
  source = pools.open_source(
    f"webdataset:{tmp_path}/a.tar", classes=("dog", "cat")
  )
  assert source.labels(np.arange(6)).tolist() == [1, 0, -1, -1, -1, -1]
  assert source.classes == 2
  unnamed = pools.open_source(f"webdataset:{tmp_path}/a.tar")
  assert unnamed.labels(np.arange(6)).tolist() == [-1, -1, -1, -1, 1, -1]


def test_what_is_damaged_is_left_out_and_named(tmp_path):
  whole = _shard(range(20))
  (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "b.tar").write_bytes(b"no tar file")
  (tmp_path / "c.tar").write_bytes(made_images.tar({"0.png": b"no image"}))
  (tmp_path / "d.tar").write_bytes(made_images.tar({}, "w:gz"))
  (tmp_path / "e.tar").write_bytes(_shard([7]))
  source = pools.open_source(f"webdataset:{tmp_path}")
  assert 5 < len(source) < 15
  why = {entry.name: entry.why for entry in source.unreadable}
  assert set(why) == {"a.tar", "b.tar", "c.tar/0.png", "d.tar"}
  assert "whole .tar" in why["a.tar"] and "plain" in why["d.tar"]
  with pytest.raises(
    errors.EcosError, match=r"no image .*1 that cannot be read"
  ):
    pools.open_source(f"webdataset:{tmp_path}/b.tar")


def test_links_and_huge_headers_are_not_followed(tmp_path):
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as archive:
    link = tarfile.TarInfo("0.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive.addfile(link)
    image = tarfile.TarInfo("1.png")
    image.size = len(made_images.png(1))
    archive.addfile(image, io.BytesIO(made_images.png(1)))
    long = tarfile.TarInfo("2" * 3_000_000 + ".png")
    archive.addfile(long)
  (tmp_path / "a.tar").write_bytes(out.getvalue())
  source = tar_shards.open_shards(str(tmp_path / "a.tar"))
  assert source.keys(np.arange(len(source))) == ["a.tar/1.png"]
  [entry] = source.unreadable
  assert "a header of" in entry.why

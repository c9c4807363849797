from pathlib import Path

import pytest

from ecos_jax import errors
from ecos_jax.config import spec


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("folder:/a b/c", spec.Folder(Path("/a b/c"))),
    ("folder:a:b", spec.Folder(Path("a:b"))),
    ("folder:/a[10%:30%]", spec.Folder(Path("/a"), (10, 30))),
    ("folder:/a[x]", spec.Folder(Path("/a[x]"))),
    ("images:/a.npz", spec.Images(Path("/a.npz"))),
    ("features:/a", spec.Features("/a")),
    ("features:~/a.parquet#x", spec.Features(f"{Path.home()}/a.parquet", "x")),
    ("folder:gs://b/a", spec.Bucket("gs://b/a")),
    ("webdataset:/a/{00..11}.tar", spec.Webdataset("/a/{00..11}.tar")),
    ("webdataset:s3://b/*.tar", spec.Webdataset("s3://b/*.tar")),
    ("parquet:/a", spec.Tables("/a", None)),
    ("parquet:gs://b/*.parquet#x", spec.Tables("gs://b/*.parquet", "x")),
    ("hub:a/b:train", spec.Hub("a/b", "default", "train")),
    ("hub:a/b/c:test", spec.Hub("a/b", "c", "test")),
    ("tfds:mnist:train", spec.Tfds("mnist", "train")),
    ("tfds:mnist:train[:50%]", spec.Tfds("mnist", "train[:50%]")),
    (
      "tfds:domainnet/real:1.0.0:test",
      spec.Tfds("domainnet/real:1.0.0", "test"),
    ),
    ("tfds:a:b[:1]+c[2:]", spec.Tfds("a", "b[:1]+c[2:]")),
    ("x.npy", spec.Images(Path("x.npy"))),
    ("folder:~/a", spec.Folder(Path.home() / "a")),
  ],
)
def test_what_a_string_names(text, expected):
  assert spec.parse(text) == expected


def test_a_path_alone_is_a_folder_if_there_is_one(tmp_path):
  folder = tmp_path / "x.npy"
  folder.mkdir()
  assert spec.parse(str(folder)) == spec.Folder(folder)


def test_a_folder_may_end_like_a_part(tmp_path):
  folder = tmp_path / "a[10%:30%]"
  folder.mkdir()
  assert spec.parse(f"folder:{folder}") == spec.Folder(folder)


@pytest.mark.parametrize("part", ["60%:50%", "50%:50%", "50%:101%"])
def test_a_part_that_is_none_is_refused(part):
  with pytest.raises(errors.EcosError, match="0 <= FROM < TO <= 100"):
    spec.parse(f"folder:/a[{part}]")


@pytest.mark.parametrize(
  "text", ["", "nowhere", "tfds:mnist", "http://x", "folder", "a.png"]
)
def test_other_words_are_refused(text):
  with pytest.raises(errors.EcosError, match=f"'{text}' names no data"):
    spec.parse(text)

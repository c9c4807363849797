import pytest

from ecos_jax import errors
from ecos_jax.data import locations


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path, bucket):
  return str(tmp_path) if request.param == "local" else bucket


def _write(place, *names):
  import fsspec

  for name in names:
    with fsspec.open(f"{place}/{name}", "wb", auto_mkdir=True) as file:
      file.write(name.encode())


def _names(pattern, suffixes=(".tar",)):
  return [file.name for file in locations.find(pattern, suffixes).files]


def test_patterns_name_files_in_natural_order(place):
  _write(place, *(f"s-{i}.tar" for i in range(12)), "other.txt", "d/s-3.tar")
  every = [f"s-{i}.tar" for i in range(12)]
  assert _names(f"{place}/s-*.tar") == every
  assert _names(f"{place}/s-{{0..11}}.tar") == every
  assert _names(f"{place}/s-{{1,3}}{{0..1}}.tar".replace("{0..1}", "")) == [
    "s-1.tar",
    "s-3.tar",
  ]
  assert _names(f"{place}/s-[2-4].tar") == ["s-2.tar", "s-3.tar", "s-4.tar"]
  assert _names(place) == ["d/s-3.tar", *every]
  assert _names(f"{place}/s-5.tar") == ["s-5.tar"]


def test_zeros_before_a_number_are_part_of_it(place):
  _write(place, *(f"{i:03}.tar" for i in (8, 9, 10)))
  found = locations.find(f"{place}/{{008..010}}.tar", (".tar",))
  assert [file.name for file in found.files] == [
    "008.tar",
    "009.tar",
    "010.tar",
  ]
  assert [b"".join(f.read([1], [4])) for f in found.files] == [
    b"08.",
    b"09.",
    b"10.",
  ]


def test_a_file_that_a_pattern_names_must_exist(place):
  _write(place, "0.tar", "2.tar")
  with pytest.raises(errors.EcosError, match=r"there is no file .*/1\.tar"):
    _names(f"{place}/{{0..2}}.tar")
  for pattern in ("none.tar", "*.zip", "none"):
    with pytest.raises(errors.EcosError, match=r"none|zip"):
      _names(f"{place}/{pattern}")


def test_hidden_files_in_a_folder_are_left_out(place):
  _write(place, "a.tar", ".b.tar", ".c/d.tar")
  assert _names(place) == ["a.tar"]


def test_links_are_followed(tmp_path):
  """Hugging Face's cache of downloads consists of links."""
  _write(tmp_path, "blobs/long-name", "d/e.tar")
  folder = tmp_path / "snapshot"
  folder.mkdir()
  (folder / "0.tar").symlink_to("../blobs/long-name")
  (folder / "1.tar").symlink_to("nowhere")
  (folder / "2.tar").symlink_to("../d")
  for pattern in (folder, f"{folder}/*.tar", f"{folder}/{{0..1}}.tar"):
    found = locations.find(str(pattern), (".tar",)).files
    assert [file.name for file in found] == ["0.tar", "1.tar"]
    assert found[0].size == len("blobs/long-name")
  [before] = locations.find(f"{folder}/0.tar", ()).files
  (tmp_path / "blobs/long-name").write_bytes(b"changed")
  assert (
    locations.find(f"{folder}/0.tar", ()).files[0].version != before.version
  )


def test_the_version_changes_with_the_file(tmp_path):
  _write(tmp_path, "a.tar")
  [before] = locations.find(f"{tmp_path}/a.tar", ()).files
  assert locations.find(f"{tmp_path}/a.tar", ()).files == [before]
  (tmp_path / "a.tar").write_bytes(b"more")
  assert locations.find(f"{tmp_path}/a.tar", ()).files[0] != before


def test_ranges_are_bounded_and_go_up(tmp_path):
  for text in ("{0..99999999999}", "{9..1}"):
    with pytest.raises(errors.EcosError, match="must go up"):
      _names(f"{tmp_path}/{text}.tar")


def test_what_a_bucket_needs_is_named(monkeypatch):
  import fsspec

  def missing(url):
    raise ImportError("Please install s3fs")

  monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
  with pytest.raises(errors.EcosError, match=r"pip install 'ecos_jax\[s3\]'"):
    _names("s3://bucket/*.tar")
  monkeypatch.undo()
  with pytest.raises(errors.EcosError, match="Protocol not known: nothing"):
    _names("nothing://bucket/*.tar")

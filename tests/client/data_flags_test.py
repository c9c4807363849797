import types

from absl import flags
import numpy as np
from PIL import Image
import pytest

from ecos_jax import errors
from ecos_jax.client import data_flags


@pytest.fixture
def given(monkeypatch):
  """Returns a function that gives flags."""

  def given(**values):
    values = {
      "classes": None,
      "data_dir": None,
      "list_unreadable": None,
    } | values
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(**values))

  return given


def test_classes_come_in_the_order_of_the_flag(given):
  given(data="folder:private", classes=["b", "a"])
  assert data_flags.classes(2) == ("b", "a")
  # Their number is the largest name of a folder, which nobody knows before.
  given(data="folder:private", classes=["numbers"])
  assert data_flags.classes(2) == ("numbers",)
  given(data="images:private.npz")
  assert data_flags.classes(2) is None


@pytest.mark.parametrize(
  ("classes", "said"),
  [
    (None, "--classes must name the folders"),
    (["a"], "names 1 classes, the cloud has 2"),
    (["folders"], "must come from there, not from the data"),
  ],
)
def test_classes_that_are_not_the_clouds_are_refused(given, classes, said):
  given(data="folder:private", classes=classes)
  with pytest.raises(errors.EcosError, match=said):
    data_flags.classes(2)


@pytest.fixture
def folder(tmp_path):
  for name in ("cats", "dog"):
    (tmp_path / "private" / name).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "private" / name / "1.png")
  (tmp_path / "private" / "dog" / "bad.png").write_bytes(b"no image")
  return tmp_path / "private"


def test_the_owner_is_told_of_classes_that_no_folder_has(given, folder, capsys):
  given(data=f"folder:{folder}")
  data = data_flags.opened(("cat", "dog"))
  np.testing.assert_array_equal(data.labels(np.arange(2)), [-1, 1])
  out = capsys.readouterr().out
  assert "no image is in a folder of the name" in out and "cat" in out
  assert "images in other folders are of no class" in out
  data_flags.opened(("cats", "dog"))
  assert "classes" not in capsys.readouterr().out


def test_files_that_cannot_be_read_are_listed_in_a_new_file(given, folder):
  listed = folder.parent / "listed"
  given(data=f"folder:{folder}", list_unreadable=str(listed))
  assert len(data_flags.opened()) == 2
  [line] = listed.read_text().splitlines()
  assert line.startswith("dog/bad.png: ")
  with pytest.raises(errors.EcosError, match="exists: name a new file"):
    data_flags.opened()
  assert listed.read_text() == f"{line}\n"


def test_features_that_are_no_numbers_are_counted(given, tmp_path, capsys):
  rows = np.ones((5, 3), np.float32)
  rows[1, 2], rows[3, 0] = np.nan, np.inf
  np.save(tmp_path / "rows.npy", rows)
  given(data=f"features:{tmp_path}/rows.npy")
  data_flags.opened()
  assert "2 rows hold NaN" in capsys.readouterr().out


def test_data_that_cannot_be_opened_are_named(given, tmp_path):
  given(data=f"folder:{tmp_path}/none")
  with pytest.raises(errors.EcosError, match=r"`data`=folder:.*none"):
    data_flags.opened()

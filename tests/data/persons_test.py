import json

import numpy as np
from PIL import Image
import pytest

from ecos_jax import errors
from ecos_jax.data import persons
from ecos_jax.data import pools

NAMES = ("ann/1.png", "ann/cat/2.png", "bob/1.png")


@pytest.fixture(name="folder")
def _folder(tmp_path):
  for name in NAMES:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(tmp_path / name)
  return tmp_path


def _read(path, text=None):
  return persons.read(pools.open_source(str(path)), text).tolist()


def test_the_folders_are_the_persons(folder):
  assert _read(folder) == ["ann", "ann", "bob"]
  Image.new("RGB", (4, 4)).save(folder / "stray.png")
  with pytest.raises(errors.EcosError, match="folder for each person"):
    _read(folder)


def test_no_sample_is_nobody_s(tmp_path):
  source = pools.open_source(str(tmp_path), may_be_empty=True)
  assert persons.read(source, None).shape == (0,)


def test_a_column_of_metadata_csv(folder):
  table = folder / "metadata.csv"
  lines = [f"{name},{i % 2},x{i}" for i, name in enumerate(NAMES)]
  # In any order, with files that are not there.
  table.write_text(
    "\n".join(["file_name,patient,scan", "gone.png,9,x9", *lines[::-1]])
  )
  assert _read(folder, "patient") == ["0", "1", "0"]
  assert _read(folder, "scan") == ["x0", "x1", "x2"]
  for text, said in (
    ("age", "no column 'age'"),
    ("gone.npy", "cannot read"),
  ):
    with pytest.raises(errors.EcosError, match=f"`persons`={text}.*{said}"):
      _read(folder, text)
  table.write_text(f"file_name,patient\n{NAMES[0]},1\n{NAMES[0]},2\n")
  with pytest.raises(errors.EcosError, match="twice"):
    _read(folder, "patient")
  table.write_text(f"file_name,patient\n{NAMES[0]},1\n{NAMES[1]},\n")
  with pytest.raises(errors.EcosError, match="not every sample"):
    _read(folder, "patient")
  # As spreadsheets save it, and with a space more.
  lines = [f"{name}, p{i % 2}" for i, name in enumerate(NAMES[:2])]
  lines = ["\ufefffile_name,patient", *lines, f"{NAMES[2]},p0"]
  table.write_text("\n".join(lines), encoding="utf-8")
  assert _read(folder, "patient") == ["p0", "p1", "p0"]
  table.unlink()
  with pytest.raises(errors.EcosError, match=r"cannot read .*metadata\.csv"):
    _read(folder, "patient")


def test_arrays_and_files_of_ids(tmp_path):
  images = np.zeros((3, 4, 4, 3), np.uint8)
  np.savez(tmp_path / "with.npz", images=images, persons=[5, 5, 6])
  np.savez(tmp_path / "without.npz", images=images)
  np.save(tmp_path / "ids.npy", np.array(["a", "b", "b"]))
  assert _read(tmp_path / "with.npz") == [5, 5, 6]
  assert _read(tmp_path / "without.npz", f"{tmp_path}/ids.npy") == [*"abb"]
  with pytest.raises(errors.EcosError, match="`persons` must say whose"):
    _read(tmp_path / "without.npz")
  with pytest.raises(errors.EcosError, match="no metadata"):
    _read(tmp_path / "without.npz", "patient")


def test_a_column_of_the_metadata_of_features(tmp_path):
  np.save(tmp_path / "f.npy", np.zeros((3, 2), np.float32))
  rows = [{"patient": i // 2, "note": None} for i in range(3)]
  lines = "\n".join(map(json.dumps, rows))
  (tmp_path / "f.jsonl").write_text(lines)
  source = f"features:{tmp_path}/f.npy"
  assert _read(source, "patient") == ["0", "0", "1"]
  with pytest.raises(errors.EcosError, match="not every sample"):
    _read(source, "note")


def test_a_damaged_file_of_ids_is_told_without_its_size(tmp_path):
  np.savez(tmp_path / "images.npz", images=np.zeros((3, 4, 4, 3), np.uint8))
  np.save(tmp_path / "ids.npy", np.arange(48611))
  data = (tmp_path / "ids.npy").read_bytes()
  (tmp_path / "ids.npy").write_bytes(data[:-8])
  with pytest.raises(errors.EcosError, match="damaged") as refusal:
    _read(tmp_path / "images.npz", f"{tmp_path}/ids.npy")
  assert "48611" not in str(refusal.value).replace(str(tmp_path), "")

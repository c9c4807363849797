import numpy as np
import pytest

from ecos_jax.cloud import adopt
from ecos_jax.cloud import bank as bank_lib
from tests.cloud.banks import BankError
from tests.cloud.banks import read
from tests.cloud.banks import save


def test_existing_files_become_a_bank(place):
  random = np.random.default_rng(0)
  arrays = {
    "b": random.normal(size=(5, 6)).astype(np.float32),
    "a": random.normal(size=(11, 6)).astype(np.float32),
    "aa": np.zeros((0, 6), np.float32),
    "c": np.zeros((0, 6), np.float32),
  }
  save(place, arrays)
  bank = adopt.from_npy(place, encoder="e", pool="p")
  expected = np.concatenate([arrays["a"], arrays["b"]])
  np.testing.assert_array_equal(read(bank), expected)
  np.testing.assert_array_equal(bank.take(np.array([12, 3])), expected[[12, 3]])
  bank.verify()
  assert (bank.encoder, bank.pool) == ("e", "p")


def test_existing_files_are_not_copied(tmp_path):
  save(tmp_path, {"a": np.ones((4, 2), np.float16)})
  before = (tmp_path / "a.npy").stat()
  bank = adopt.from_npy(tmp_path, encoder="e", pool="p")
  after = (tmp_path / "a.npy").stat()
  assert (before.st_ino, before.st_mtime) == (after.st_ino, after.st_mtime)
  assert len(list(tmp_path.iterdir())) == 2
  assert bank.dtype == np.float16


def with_nan():
  array = np.zeros((9, 2), np.float32)
  array[[3, 7], 1] = np.nan, np.inf
  return array


@pytest.mark.parametrize(
  "arrays, message",
  [
    ({}, "no .npy files"),
    ({"a": np.zeros((0, 2), np.float32)}, "no .npy files with rows"),
    ({"a": with_nan()}, "rows 3, 7 hold NaN"),
    (
      {"a": np.array([[0, 1], [-3.4e38, 2]], np.float32)},
      r"a\.npy: rows 1 hold .* huge values \(-3\.4e\+38 to 2 in row 1\)",
    ),
    ({"a": np.zeros((3, 2))}, r"float16 or float32, got float64 \[3, 2\]"),
    ({"a": np.zeros((3, 2), ">f4")}, r"float16 or float32, got >f4 \[3, 2\]"),
    ({"a": np.zeros(3, np.float32)}, r"got float32 \[3\]"),
    (
      {"a": 2000 + np.arange(3, dtype=np.float16)[:, None]},
      r"float16 rounds.*save .*a\.npy as float32",
    ),
    ({"a": np.asfortranarray(np.zeros((3, 2), np.float32))}, "C-ordered"),
    ({"a": np.array([["x"]], object)}, "a.npy"),
    (
      {"a": np.zeros((3, 2), np.float32), "b": np.zeros((3, 4), np.float32)},
      r"b\.npy holds rows of 4 x float32, the files before it 2 x float32",
    ),
  ],
)
def test_refuses_files_that_make_no_bank(tmp_path, arrays, message):
  save(tmp_path, arrays)
  with pytest.raises(BankError, match=message):
    adopt.from_npy(tmp_path, encoder="e", pool="p")
  assert not (tmp_path / bank_lib.MANIFEST).exists()


def test_refuses_a_truncated_or_foreign_file(tmp_path):
  path = tmp_path / "a.npy"
  np.save(path, np.zeros((9, 2), np.float32))
  whole = path.read_bytes()
  for data, message in ((whole[:-3], "truncated"), (b"PNG", "no .npy file")):
    path.write_bytes(data)
    with pytest.raises(BankError, match=message):
      adopt.from_npy(tmp_path, encoder="e", pool="p")

import json
import os
from pathlib import Path
import warnings

import numpy as np
from pyarrow import Table
from pyarrow import parquet
import pytest

from ecos_jax import errors
from ecos_jax.data import features
from ecos_jax.data import pools
from ecos_jax.data import proxy


def rows(n, d=4, dtype=np.float16, seed=0):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


@pytest.fixture
def shards(tmp_path):
  folder = tmp_path / "shards"
  folder.mkdir()
  parts = [rows(3, seed=1), rows(1, seed=2), rows(5, seed=3)]
  for name, part in zip("abc", parts, strict=True):
    np.save(folder / f"{name}.npy", part)
  return folder, np.concatenate(parts)


def test_shards_are_one_array_in_the_order_of_their_names(shards):
  folder, expected = shards
  source = features.FeatureSource(folder)
  assert (len(source), source.dimension, source.name) == (9, 4, "shards")
  indices = np.array([8, 0, 3, 3, 2])
  np.testing.assert_array_equal(source.features(indices), expected[indices])
  assert source.labels(indices).tolist() == [-1] * 5
  digest = source.digest
  np.save(folder / "d.npy", rows(2))
  assert features.FeatureSource(folder).digest != digest


def test_a_file_is_a_source_of_its_name(tmp_path):
  np.save(tmp_path / "x.npy", rows(3, dtype=np.float64))
  source = pools.open_source(f"features:{tmp_path / 'x.npy'}")
  assert isinstance(source, features.FeatureSource)
  assert source.name == "x"
  assert source.features(np.arange(3)).dtype == np.float64


def test_there_are_no_images(shards):
  source = features.FeatureSource(shards[0])
  for use in (
    lambda: source.images(np.arange(2), 8),
    lambda: source.encoded(0),
  ):
    with pytest.raises(errors.EcosError, match="shards holds features"):
      use()


def test_shards_are_in_natural_order_and_not_kept_open(tmp_path):
  for i in (0, 2, 10):
    np.save(tmp_path / f"s-{i}.npy", np.full((1, 2), i, np.float32))
  source = features.FeatureSource(tmp_path)
  opened = len(list(Path("/proc/self/fd").iterdir()))
  assert source.features(np.arange(3))[:, 0].tolist() == [0, 2, 10]
  assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_the_digest_is_of_the_content(tmp_path):
  for folder in "ab":
    (tmp_path / folder).mkdir()
    np.save(tmp_path / folder / "x.npy", rows(9))
  os.utime(tmp_path / "b/x.npy", (1, 1))
  digests = [
    features.FeatureSource(tmp_path / folder / "x.npy").digest
    for folder in "ab"
  ]
  assert digests[0] == digests[1]
  np.save(tmp_path / "b/x.npy", rows(9, seed=1))
  assert features.FeatureSource(tmp_path / "b/x.npy").digest != digests[0]


def test_refuses_shards_that_do_not_fit_and_none(shards, tmp_path):
  folder, _ = shards
  np.save(folder / "d.npy", rows(2, d=5))
  with pytest.raises(errors.EcosError, match=r"d\.npy has d = 5"):
    features.FeatureSource(folder)
  with pytest.raises(errors.EcosError, match=r"no file with the suffix \.npy"):
    features.FeatureSource(tmp_path)
  with pytest.raises(errors.EcosError, match=r"none\.npy"):
    features.FeatureSource(tmp_path / "none.npy")


def _write(path, table):
  if path.suffix == ".jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
  else:
    parquet.write_table(Table.from_pylist(table), path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_index_tells_where_each_sample_is(shards, tmp_path, suffix):
  folder, _ = shards
  np.save(tmp_path / "more.npy", rows(4))
  _write(folder / f"metadata{suffix}", [{"id": f"é{i}"} for i in range(9)])
  pool = pools.Pool(
    [
      features.FeatureSource(folder),
      features.FeatureSource(tmp_path / "more.npy"),
    ]
  )
  indices = np.array([7, 2, 10])
  proxy.write_index(
    tmp_path / "index.npy", pool, indices, np.arange(3), np.ones(3)
  )
  table = np.load(tmp_path / "index.npy")
  assert table["index"].tolist() == [7, 2, 10]
  assert table["source"].tolist() == [0, 0, 1]
  assert table["row"].tolist() == [7, 2, 1]
  lines = (tmp_path / "metadata.jsonl").read_text("utf-8").splitlines()
  assert list(map(json.loads, lines)) == [{"id": "é7"}, {"id": "é2"}, {}]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_metadata_of_another_length_are_refused(shards, suffix):
  folder, _ = shards
  _write(folder / f"metadata{suffix}", [{"id": i} for i in range(8)])
  source = features.FeatureSource(folder)
  with pytest.raises(errors.EcosError, match=r"one row .* for each") as refusal:
    source.metadata(np.array([1]))
  # A client's number of samples is private.
  assert "8" not in str(refusal.value).replace(str(folder), "")


@pytest.mark.parametrize("lines", [0, 1])
def test_metadata_may_end_with_an_empty_line(shards, lines):
  folder, _ = shards
  rows = '{"a": 1}\n' * len(features.FeatureSource(folder))
  (folder / "metadata.jsonl").write_text(rows + "\n" * lines)
  source = features.FeatureSource(folder)
  assert source.metadata(np.array([0])) == [{"a": 1}]


def test_metadata_without_rows_are_refused(shards):
  folder, _ = shards
  (folder / "metadata.jsonl").write_text("")
  with pytest.raises(errors.EcosError, match=r"one row .* for each"):
    features.FeatureSource(folder).metadata(np.array([0]))


@pytest.mark.parametrize(
  ("line", "said"),
  [
    ("[1]", "one row of named values"),
    ("null", "one row of named values"),
    ("[" * 100_000, "is damaged"),
    ("{", "is damaged"),
  ],
)
def test_metadata_of_another_form_are_refused(tmp_path, line, said):
  np.save(tmp_path / "x.npy", rows(2))
  (tmp_path / "x.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
  source = features.FeatureSource(tmp_path / "x.npy")
  with pytest.raises(errors.EcosError, match=said):
    source.metadata(np.arange(2))


def test_a_pool_is_of_one_kind_and_of_one_dimension(tmp_path):
  np.save(tmp_path / "a.npy", rows(3))
  np.save(tmp_path / "b.npy", rows(3, d=5))
  a, b = (features.FeatureSource(tmp_path / f"{x}.npy") for x in "ab")
  images = pools.ArraySource("i", np.zeros((2, 4, 4), np.uint8))
  with pytest.raises(errors.EcosError, match="not of both"):
    pools.Pool([a, images])
  with pytest.raises(errors.EcosError, match=r"d = \[4, 5\]"):
    pools.Pool([a, b])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_that_say_nothing_are_counted(tmp_path, dtype):
  """NaN, infinity, and the largest number, which marks missing values."""
  array = rows(7).astype(dtype)
  array[1] = np.nan
  array[3, 0] = np.nan
  array[4, 1] = -np.inf
  array[5, 2] = np.finfo(dtype).min
  expected = [1, 3, 4] if dtype == "float16" else [1, 3, 4, 5]
  with warnings.catch_warnings(action="error"):
    assert np.flatnonzero(features.unusable(array)).tolist() == expected
  np.save(tmp_path / "a.npy", array)
  source = features.FeatureSource(tmp_path / "a.npy")
  assert source.unusable() == len(expected)


def test_what_is_usable_has_finite_squares():
  array = np.full((1, 8192), 2.0**57, np.float32)
  assert not features.unusable(array).any()
  assert np.isfinite(np.square(array).sum())

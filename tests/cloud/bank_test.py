import functools
import itertools
import json
from pathlib import Path
import subprocess
import sys
import threading
import time

import fsspec
import jax
import numpy as np
import pytest

from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import storage
from ecos_jax.clustering import assign
from ecos_jax.clustering import kmeans
from tests.cloud.banks import ENCODER
from tests.cloud.banks import POOL
from tests.cloud.banks import BankError
from tests.cloud.banks import build
from tests.cloud.banks import features_of
from tests.cloud.banks import make_encoder
from tests.cloud.banks import make_pool
from tests.cloud.banks import read
from tests.cloud.banks import save


@pytest.mark.parametrize("n", [1, 19, 20, 103])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_holds_the_features_of_the_pool(place, n, dtype):
  pool = make_pool(n)
  bank = build(place, pool, dtype=dtype)
  expected = features_of(pool).astype(dtype)
  assert bank.shape == (n, 3) and bank.dtype == dtype
  assert (bank.encoder, bank.pool) == (ENCODER.digest, pool.digest)
  for rows in (1, 7, 20, 1000):
    np.testing.assert_array_equal(read(bank, rows), expected)
  np.testing.assert_array_equal(
    read(bank_lib.FeatureBank.open(place)), expected
  )
  bank.verify()


def test_take(place):
  bank = build(place, dtype="float16")
  expected = features_of(make_pool()).astype(np.float16).astype(np.float32)
  for rows in ([], [102], [99, 3, 3, 0, 20, 19, 40], range(103)):
    rows = np.array(rows, np.int64)
    got = bank.take(rows)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected[rows])
  for row in (-1, 103):
    with pytest.raises(IndexError, match=r"0\.\.102"):
      bank.take(np.array([0, row]))


def test_take_in_windows(tmp_path, monkeypatch):
  monkeypatch.setattr(bank_lib, "_WINDOW_BYTES", 40)
  rows = np.array([102, 0, 19, 20, 3, 4, 3])
  got = build(tmp_path).take(rows)
  np.testing.assert_array_equal(got, features_of(POOL)[rows])


def test_shards_are_what_numpy_reads(tmp_path):
  build(tmp_path)
  shards = [np.load(path) for path in sorted(tmp_path.glob("*.npy"))]
  assert [len(shard) for shard in shards] == [20] * 5 + [3]
  np.testing.assert_array_equal(
    np.concatenate(shards), features_of(make_pool())
  )
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {bank_lib.MANIFEST} | {f"shard-{i:06d}.npy" for i in range(6)}


def test_blocks_reuse_a_few_aligned_buffers(tmp_path):
  bank = build(tmp_path, dtype="float32")
  addresses = [block.ctypes.data for _, block in bank.blocks(8)]
  assert len(addresses) == 13 and len(set(addresses)) == 6
  assert all(address % 64 == 0 for address in addresses)


@pytest.mark.parametrize("rows", [7, 40, 103, 200])
def test_parts_of_blocks_make_up_the_blocks(place, rows):
  bank = build(place)
  cuts = [0, rows // 3, rows // 2, rows]
  parts = [
    [(start, block.copy()) for start, block in bank.blocks(rows, slice(a, b))]
    for a, b in itertools.pairwise(cuts)
  ]
  for (start, block), *pieces in zip(bank.blocks(rows), *parts, strict=True):
    assert all(first == start for first, _ in pieces)
    np.testing.assert_array_equal(
      np.concatenate([piece for _, piece in pieces]), block
    )


def test_reading_waits_for_no_single_block(tmp_path, monkeypatch):
  bank = build(tmp_path)
  started = threading.Semaphore(0)

  def read_into(self, file, offset, view):
    # Goes on once four reads are under way at the same time.
    started.release()
    deadline = time.monotonic() + 60
    while started._value < 4 and time.monotonic() < deadline:
      time.sleep(0.001)
    return original(self, file, offset, view)

  original = storage.Folder.read_into
  monkeypatch.setattr(storage.Folder, "read_into", read_into)
  begin = time.monotonic()
  np.testing.assert_array_equal(read(bank, 20), features_of(POOL))
  assert time.monotonic() - begin < 30


def test_reading_can_be_given_up(tmp_path):
  blocks = build(tmp_path).blocks(8)
  next(blocks)
  blocks.close()


def test_the_digest_tells_what_the_bank_holds(tmp_path):
  same = [build(tmp_path / name).digest for name in "ab"]
  assert same[0] == same[1]
  others = {
    build(tmp_path / "c", make_pool(seed=1)).digest,
    build(tmp_path / "d", encoder=make_encoder(digest="f" * 64)).digest,
    build(tmp_path / "e", dtype="float16").digest,
  }
  assert len(others | set(same)) == 4


@pytest.mark.parametrize("size", [0, 100, -1, 1])
def test_detects_a_truncated_or_longer_shard(tmp_path, size):
  build(tmp_path)
  shard = tmp_path / "shard-000002.npy"
  data = shard.read_bytes()
  shard.write_bytes(data + b"x" if size == 1 else data[:size])
  with pytest.raises(BankError, match=r"shard-000002\.npy has \d+ bytes"):
    bank_lib.FeatureBank.open(tmp_path)


def test_detects_a_shard_truncated_while_open(tmp_path):
  bank = build(tmp_path)
  shard = tmp_path / "shard-000002.npy"
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(BankError, match=r"shard-000002\.npy is truncated"):
    read(bank)


def test_detects_a_missing_shard(place):
  build(place)
  fs, root = fsspec.core.url_to_fs(str(place))
  fs.rm(f"{root}/shard-000003.npy")
  with pytest.raises(BankError, match=r"shard-000003\.npy is missing"):
    bank_lib.FeatureBank.open(place)


def test_detects_an_altered_shard(tmp_path):
  build(tmp_path)
  shard = tmp_path / "shard-000001.npy"
  data = bytearray(shard.read_bytes())
  data[-1] ^= 1
  shard.write_bytes(data)
  with pytest.raises(BankError, match=r"shard-000001\.npy was altered"):
    bank_lib.FeatureBank.open(tmp_path).verify()


def test_detects_a_foreign_shard(tmp_path):
  build(tmp_path / "a")
  build(tmp_path / "b", make_pool(seed=1))
  name = "shard-000001.npy"
  (tmp_path / "b" / name).replace(tmp_path / "a" / name)
  with pytest.raises(BankError, match="altered"):
    bank_lib.FeatureBank.open(tmp_path / "a").verify()
  np.save(tmp_path / "a" / "other.npy", np.zeros((2, 3)))
  with pytest.raises(BankError, match=r"other\.npy does not belong"):
    bank_lib.FeatureBank.open(tmp_path / "a")


def test_refuses_what_is_no_bank(tmp_path):
  with pytest.raises(BankError, match="no finished"):
    bank_lib.FeatureBank.open(tmp_path / "nothing")
  manifest = tmp_path / bank_lib.MANIFEST
  for text, message in (
    ("{", "damaged"),
    ("[]", "damaged"),
    ('{"version": 1, "rows": 3}', "damaged"),
    ("{}", "version None"),
    ('{"version": 99}', "version 99"),
  ):
    manifest.write_text(text)
    said = rf"{manifest} is .*{message}.*: delete {tmp_path}, and build"
    with pytest.raises(BankError, match=said):
      bank_lib.FeatureBank.open(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_clusters_as_its_features_in_memory_do(place, dtype):
  pool = make_pool(500)
  bank = build(place, pool, dtype=dtype)
  features = features_of(pool).astype(dtype)
  fit = functools.partial(kmeans.fit, k=9, key=jax.random.key(0))
  expected = fit(features)
  for memory_budget in (0, 1 << 20):
    got = fit(bank, memory_budget=memory_budget)
    np.testing.assert_array_equal(got.centroids, expected.centroids)
  labels = np.concatenate(
    [part.labels for _, part in assign.stream(bank, expected.centroids)]
  )
  np.testing.assert_array_equal(
    labels, assign.assign(features, expected.centroids).labels
  )


def test_the_manifest_is_public_and_readable(tmp_path):
  build(tmp_path)
  manifest = json.loads((Path(tmp_path) / bank_lib.MANIFEST).read_text())
  assert manifest["rows"] == 103
  assert [shard["start"] for shard in manifest["shards"]] == [
    0,
    20,
    40,
    60,
    80,
    100,
  ]


_STREAM = """
import resource
import sys
import jax
import numpy as np
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import adopt
from ecos_jax.clustering import assign, kmeans
bank = adopt.from_npy(sys.argv[1], encoder="e", pool="p")
fit = kmeans.fit(bank, 10, jax.random.key(0), iterations=1, memory_budget=0)
assert fit.sizes.sum() == bank.shape[0]
rows = sum(len(part.labels) for _, part in assign.stream(bank, fit.centroids))
assert rows == bank.shape[0]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_bank(tmp_path):
  random = np.random.default_rng(0)
  shard = random.normal(size=(1 << 17, 128)).astype(np.float16)
  peaks = []
  for shards in (2, 8):
    folder = tmp_path / str(shards)
    save(folder, {str(i): shard for i in range(shards)})
    child = subprocess.run(
      [sys.executable, "-c", _STREAM, folder],
      check=True,
      capture_output=True,
      text=True,
    )
    peaks.append(int(child.stdout))
  # 192 MiB more of features.
  assert peaks[1] - peaks[0] < 64 << 10

import functools
import itertools
import json
from pathlib import Path
import subprocess
import sys
import threading
import time
import uuid

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import encode
from ecos_jax.cloud import storage
from ecos_jax.clustering import assign
from ecos_jax.clustering import kmeans
from ecos_jax.data import pools
from ecos_jax.encoders import registry

BankError = storage.BankError


def mean_colours(images):
  return jnp.mean(images.astype(jnp.float32), axis=(1, 2)) / 255


def make_encoder(apply=mean_colours, digest="e" * 64):
  return registry.Encoder("colours", 4, 3, {}, digest, apply)


ENCODER = make_encoder()


def make_pool(n=103, seed=0):
  random = np.random.default_rng(seed)
  images = random.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
  return pools.Pool([pools.ArraySource("noise", images, None)])


POOL = make_pool()


def features_of(pool):
  return registry.encode(ENCODER, pool.images(np.arange(len(pool)), 4))


def build(path, pool=POOL, encoder=ENCODER, **options):
  options = {"dtype": "float32", "shard_rows": 20, "batch_size": 8} | options
  return encode.build(path, pool, encoder, **options)


def read(bank, rows=7):
  return np.concatenate([block.copy() for _, block in bank.blocks(rows)])


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
  """A folder, and a bucket."""
  if request.param == "local":
    return tmp_path / "bank"
  return f"memory://{uuid.uuid4().hex}/bank"


class Killed(BaseException):
  """As abrupt as Ctrl-C."""


class KilledPool:
  """A pool whose reading is cut off after some images."""

  def __init__(self, pool, limit):
    self.pool, self.limit, self.reads = pool, limit, []
    self.digest = pool.digest

  def __len__(self):
    return len(self.pool)

  def images(self, indices, size):
    if sum(map(len, self.reads)) + len(indices) > self.limit:
      raise Killed
    self.reads.append(indices)
    return self.pool.images(indices, size)


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


def test_some_shards_are_written_at_the_same_time(tmp_path, monkeypatch):
  # Two shards must meet; more than a few must not wait in memory.
  barrier = threading.Barrier(2)
  original = storage.Folder.write
  writing, most = [], []

  def write(self, file, *parts):
    if file.endswith(".npy") and file < "shard-000002":
      barrier.wait(timeout=60)
    writing.append(file)
    most.append(len(writing))
    time.sleep(0.01)
    original(self, file, *parts)
    writing.remove(file)

  monkeypatch.setattr(storage.Folder, "write", write)
  np.testing.assert_array_equal(
    read(build(tmp_path, shard_rows=8)), features_of(POOL)
  )
  assert max(most) <= 4


def test_told_to_stop_a_build_keeps_whole_shards(tmp_path, monkeypatch):
  pool = KilledPool(make_pool(), 1000)

  def told():
    return sum(map(len, pool.reads)) > 40

  monkeypatch.setattr(distributed, "told_to_stop", told)
  with pytest.raises(errors.PreemptedError):
    build(tmp_path, pool)
  kept = len(list(tmp_path.glob("*.npy")))
  assert kept >= 1 and not (tmp_path / bank_lib.MANIFEST).exists()
  monkeypatch.undo()
  rest = KilledPool(make_pool(), 103 - 20 * kept)
  np.testing.assert_array_equal(read(build(tmp_path, rest)), features_of(POOL))


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


@pytest.mark.parametrize("limit", [0, 30, 70, 102])
def test_a_killed_build_goes_on_behind_its_shards(place, limit):
  pool = make_pool()
  with pytest.raises(Killed):
    build(place, KilledPool(pool, limit))
  with pytest.raises(BankError, match="no finished feature bank"):
    bank_lib.FeatureBank.open(place)
  rest = KilledPool(pool, 1000)
  bank = build(place, rest)
  whole = build(f"{place}-whole", pool)
  assert bank.digest == whole.digest
  np.testing.assert_array_equal(read(bank), features_of(pool))
  # A shard is lost only if it was the last one begun or being written.
  again = sum(map(len, rest.reads))
  assert again <= 103 - 20 * max(limit // 20 - 1, 0)


def test_a_finished_build_is_not_done_again(tmp_path):
  first = build(tmp_path)
  assert build(tmp_path, KilledPool(make_pool(), 0)).digest == first.digest


def test_a_shard_cut_off_before_the_kill_is_made_again(tmp_path):
  with pytest.raises(Killed):
    build(tmp_path, KilledPool(make_pool(), 70))
  shard = tmp_path / "shard-000001.npy"
  shard.write_bytes(shard.read_bytes()[:-1])
  np.testing.assert_array_equal(read(build(tmp_path)), features_of(make_pool()))


def test_a_shard_without_its_fragment_is_made_again(tmp_path):
  with pytest.raises(Killed):
    build(tmp_path, KilledPool(make_pool(), 70))
  (tmp_path / "shard-000000.json").unlink()
  (tmp_path / "shard-000000.npy").write_bytes(b"half")
  bank = build(tmp_path)
  np.testing.assert_array_equal(read(bank), features_of(make_pool()))
  bank.verify()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
  "options, word",
  [
    ({"pool": make_pool(seed=1)}, "pool"),
    ({"encoder": make_encoder(digest="f" * 64)}, "encoder"),
    ({"dtype": "float16"}, "dtype"),
  ],
)
def test_refuses_to_mix_two_banks(tmp_path, finished, options, word):
  if finished:
    build(tmp_path)
  else:
    with pytest.raises(Killed):
      build(tmp_path, KilledPool(make_pool(), 70))
  with pytest.raises(BankError, match=f"{word} was .* now is"):
    build(tmp_path, **options)


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


def test_detects_a_damaged_fragment_and_another_digest(tmp_path):
  bank = build(tmp_path)
  assert bank_lib.FeatureBank.open(tmp_path, bank.digest).digest == bank.digest
  with pytest.raises(BankError, match=r"bank\.json is damaged: delete"):
    bank_lib.FeatureBank.open(tmp_path, "0" * 64)
  (tmp_path / bank_lib.MANIFEST).unlink()
  fragment = tmp_path / "shard-000000.json"
  for text in ("{", "{}", "[]", '{"identity": {}, "shard": {}}'):
    fragment.write_text(text)
    with pytest.raises(BankError, match=rf"{fragment} is damaged: delete"):
      build(tmp_path)


def test_names_the_samples_whose_features_are_not_finite(tmp_path):
  def broken(images):
    # Sample 45 is the black one.
    features = mean_colours(images)
    return jnp.where(features.sum(1, keepdims=True) == 0, jnp.nan, features)

  images = np.full((103, 4, 4, 3), 9, np.uint8)
  images[45] = 0
  pool = pools.Pool([pools.ArraySource("one black", images, None)])
  with pytest.raises(BankError, match=r"samples 45 are not finite"):
    build(tmp_path, pool, make_encoder(broken))
  assert not (tmp_path / bank_lib.MANIFEST).exists()


def test_names_the_samples_that_float16_cannot_hold(tmp_path):
  encoder = make_encoder(lambda images: mean_colours(images) * 1e6)
  with pytest.raises(BankError, match=r"0, 1, 2, 3, 4 .*float16.*bank\.dtype"):
    build(tmp_path, encoder=encoder, dtype="float16")
  assert np.isfinite(read(build(tmp_path / "32", encoder=encoder))).all()


def test_refuses_an_empty_pool_and_an_unknown_dtype(tmp_path):
  with pytest.raises(BankError, match="empty"):
    build(tmp_path, EmptyPool())
  with pytest.raises(BankError, match=r"bank\.dtype=int8.*float16, float32"):
    build(tmp_path, dtype="int8")


class EmptyPool:
  """A pool without samples."""

  digest = "0" * 64

  def __len__(self):
    return 0


def save(place, arrays):
  fs, root = fsspec.core.url_to_fs(str(place))
  fs.makedirs(root, exist_ok=True)
  for name, array in arrays.items():
    with fs.open(f"{root}/{name}.npy", "wb") as file:
      np.save(file, array)


def test_existing_files_become_a_bank(place):
  random = np.random.default_rng(0)
  arrays = {
    "b": random.normal(size=(5, 6)).astype(np.float32),
    "a": random.normal(size=(11, 6)).astype(np.float32),
    "aa": np.zeros((0, 6), np.float32),
    "c": np.zeros((0, 6), np.float32),
  }
  save(place, arrays)
  bank = encode.from_npy(place, encoder="e", pool="p")
  expected = np.concatenate([arrays["a"], arrays["b"]])
  np.testing.assert_array_equal(read(bank), expected)
  np.testing.assert_array_equal(bank.take(np.array([12, 3])), expected[[12, 3]])
  bank.verify()
  assert (bank.encoder, bank.pool) == ("e", "p")


def test_existing_files_are_not_copied(tmp_path):
  save(tmp_path, {"a": np.ones((4, 2), np.float16)})
  before = (tmp_path / "a.npy").stat()
  bank = encode.from_npy(tmp_path, encoder="e", pool="p")
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
    ({"a": np.zeros((3, 2))}, r"float16 or float32, got float64 \[3, 2\]"),
    ({"a": np.zeros((3, 2), ">f4")}, r"float16 or float32, got >f4 \[3, 2\]"),
    ({"a": np.zeros(3, np.float32)}, r"got float32 \[3\]"),
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
    encode.from_npy(tmp_path, encoder="e", pool="p")
  assert not (tmp_path / bank_lib.MANIFEST).exists()


def test_refuses_a_truncated_or_foreign_file(tmp_path):
  path = tmp_path / "a.npy"
  np.save(path, np.zeros((9, 2), np.float32))
  whole = path.read_bytes()
  for data, message in ((whole[:-3], "truncated"), (b"PNG", "no .npy file")):
    path.write_bytes(data)
    with pytest.raises(BankError, match=message):
      encode.from_npy(tmp_path, encoder="e", pool="p")


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
from ecos_jax.cloud import encode
from ecos_jax.clustering import assign, kmeans
bank = encode.from_npy(sys.argv[1], encoder="e", pool="p")
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

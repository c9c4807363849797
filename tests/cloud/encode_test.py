import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import storage
from ecos_jax.data import pools
from tests.cloud.banks import POOL
from tests.cloud.banks import BankError
from tests.cloud.banks import build
from tests.cloud.banks import features_of
from tests.cloud.banks import make_encoder
from tests.cloud.banks import make_pool
from tests.cloud.banks import mean_colours
from tests.cloud.banks import read


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


def test_refuses_features_whose_differences_float16_rounds_away(tmp_path):
  encoder = make_encoder(lambda images: mean_colours(images) + 1000)
  with pytest.raises(BankError, match=r"float16 rounds.*`bank\.dtype`=float32"):
    build(tmp_path, encoder=encoder, dtype="float16")
  build(tmp_path / "32", encoder=encoder)


def test_refuses_an_unknown_dtype(tmp_path):
  with pytest.raises(BankError, match=r"`bank\.dtype`=int8.*float16, float32"):
    build(tmp_path, dtype="int8")

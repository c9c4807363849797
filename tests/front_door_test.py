"""The package as a user imports it: the method as functions on arrays."""

import functools
import math
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import ecos_jax
from ecos_jax import messages
from ecos_jax.cloud import adopt
from ecos_jax.cloud import bank as bank_lib

KEY = jax.random.key(0)


@pytest.fixture(name="answered", scope="module")
def _answered(tmp_path_factory):
  """Returns the answer to a question, with noise from a seed."""
  ledger = tmp_path_factory.mktemp("client") / "ledger"
  ecos_jax.create_ledger(ledger, max_epsilon=math.inf)
  return functools.partial(
    ecos_jax.answer, sigma=2.0, ledger=ledger, insecure_noise_seed=1
  )


@pytest.fixture(name="parts", scope="module")
def _parts(answered):
  """Three far blobs of 1,000 samples; the client's are all of the second."""
  random = np.random.default_rng(0)
  places = 20 * np.eye(3, 6)
  pool = np.repeat(places, 1000, axis=0) + random.normal(size=(3000, 6))
  private = places[1] + random.normal(size=(200, 6))
  pool, private = pool.astype(np.float32), private.astype(np.float32)
  codebook = ecos_jax.fit_codebook(pool, 6, KEY)
  question = ecos_jax.ask(codebook)
  return pool, private, codebook, question, answered(question, private)


def test_from_pool_and_private_features_to_samples_like_the_clients(parts):
  pool, _, codebook, question, answer = parts
  assert codebook.centroids.shape == (6, 6)
  np.testing.assert_array_equal(
    codebook.sizes, np.bincount(codebook.assignment, minlength=6)
  )
  gaps = ((pool[:, None] - codebook.centroids) ** 2).sum(2)
  np.testing.assert_array_equal(codebook.assignment, gaps.argmin(1))
  choice = ecos_jax.choose(pool, codebook, question, answer, 300, KEY)
  assert len(set(choice.indices.tolist())) == 300
  assert np.mean(choice.indices // 1000 == 1) > 0.95
  np.testing.assert_array_equal(
    choice.clusters, codebook.assignment[choice.indices]
  )
  # A prefix is a smaller choice: each cluster keeps its part.
  whole = np.bincount(choice.clusters, minlength=6) / 300
  part = np.bincount(choice.clusters[:60], minlength=6)
  assert np.all(np.abs(part - 60 * whole) < 1)


def test_arrays_of_all_kinds_and_a_bank_give_the_same(
  parts, answered, tmp_path
):
  pool, private, *_ = parts
  pool = pool.astype(np.float16)
  np.save(tmp_path / "pool.npy", pool)
  mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
  bank = adopt.from_npy(tmp_path, encoder="e", pool="p")
  assert isinstance(bank, bank_lib.FeatureBank)
  results = []
  for features in (pool, mapped, jax.numpy.asarray(pool), bank):
    codebook = ecos_jax.fit_codebook(features, 6, KEY)
    question = ecos_jax.ask(codebook)
    choice = ecos_jax.choose(
      features, codebook, question, answered(question, private), 100, KEY
    )
    results.append(jax.tree.leaves((codebook, choice)))
  for other in results[1:]:
    for ours, theirs in zip(results[0], other, strict=True):
      np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_array_equal(
    codebook.centroids.astype(np.float16), codebook.centroids
  )


def test_images_to_a_proxy(answered, tmp_path):
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (60, 30, 30, 3), np.uint8)
  features = ecos_jax.encode(images, "hog", batch_size=25)
  assert features.shape == (60, 72) and features.dtype == np.float32
  pool = ecos_jax.Pool([ecos_jax.ArraySource("noise", images, np.arange(60))])
  # Batches of another size differ by rounding.
  again = ecos_jax.encode(pool, "hog")
  np.testing.assert_allclose(again, features, atol=1e-6)
  codebook = ecos_jax.fit_codebook(features, 4, KEY)
  question = ecos_jax.ask(codebook, "hog")
  answer = answered(question, images[:20])
  choice = ecos_jax.choose(features, codebook, question, answer, 7, KEY)
  ecos_jax.write_proxy(
    tmp_path / "proxy",
    pool,
    choice.indices,
    choice.clusters,
    pool.labels(choice.indices),
  )
  proxy = ecos_jax.open_proxy(tmp_path / "proxy")
  for item, index in zip(proxy, choice.indices, strict=True):
    assert item["index"] == item["label"] == index
    np.testing.assert_array_equal(item["image"], images[index])


def test_several_clients_are_added_up(parts, answered, tmp_path):
  pool, _, codebook, question, answer = parts
  ledger = tmp_path / "ledger"
  ecos_jax.create_ledger(ledger, max_epsilon=math.inf)
  others = answered(question, pool[:300], ledger=ledger)
  choice = ecos_jax.choose(
    pool, codebook, question, [answer, others], 200, KEY, density_power=0.0
  )
  blobs = np.bincount(choice.indices // 1000, minlength=3)
  assert abs(blobs[0] - 120) < 15 and blobs[2] < 10
  again = answered(question, pool[:300], name="others")
  with pytest.raises(ecos_jax.EcosError, match="of one client"):
    ecos_jax.choose(pool, codebook, question, [answer, again], 200, KEY)


@pytest.mark.parametrize(
  "changes, said",
  [
    (
      {"features": np.zeros((3000, 6))},
      "`features` must be float16 or float32",
    ),
    ({"features": np.zeros((3000, 5), "f4")}, r"`features` .*\[3000, 6\]"),
    ({"budget": 0}, "budget"),
    ({"likely": 0.0}, "`likely`"),
    ({"central": 2.0}, "`central`"),
    ({"density_power": float("nan")}, "`density_power`"),
    ({"within": "middle"}, "`within` cannot be .* kcenter, random, nearest"),
    ({"estimate": "mean"}, "`estimate` cannot be"),
    ({"filter": "best"}, "`filter` cannot be"),
    ({"budget": 1.5}, "`budget` cannot be 1.5"),
    ({"likely": None}, "`likely` cannot be None"),
    ({"key": 3}, "`key` must be a random key"),
    ({"question": b"nothing"}, "the query"),
    ({"answers": b"nothing"}, "the response"),
    ({"answers": []}, "no response"),
    ({"answers": bytearray(b"no")}, "`answers` must be bytes"),
    ({"answers": None}, "`answers` must be bytes"),
  ],
)
def test_wrong_arguments_of_choose_are_named(parts, changes, said):
  pool, _, codebook, question, answer = parts
  arguments = {
    "features": pool,
    "codebook": codebook,
    "question": question,
    "answers": answer,
    "budget": 10,
    "key": KEY,
  }
  with pytest.raises(ecos_jax.EcosError, match=said):
    ecos_jax.choose(**arguments | changes)


def test_what_does_not_belong_together_is_refused(parts):
  pool, _, codebook, question, answer = parts
  other = codebook._replace(centroids=codebook.centroids + 1)
  with pytest.raises(ecos_jax.EcosError, match="`question` is not about"):
    ecos_jax.choose(pool, other, question, answer, 10, KEY)
  with pytest.raises(ecos_jax.EcosError, match="one answer twice"):
    ecos_jax.choose(pool, codebook, question, [answer, answer], 10, KEY)
  with pytest.raises(ecos_jax.EcosError, match="answers query"):
    asked = ecos_jax.ask(codebook, sigma=5.0)
    ecos_jax.choose(pool, codebook, asked, answer, 10, KEY)


@pytest.mark.parametrize(
  "features, size, said",
  [
    (np.zeros(9, np.float32), 2, r"`features` must .* got float32 \[9\]"),
    ([[1, 2], [3, 4]], 2, "got int64"),
    (np.zeros((0, 4), np.float32), 1, r"\[0, 4\]"),
    (np.zeros((9, 4), np.float32), 10, "size"),
    (np.full((9, 4), np.nan, np.float32), 2, "NaN"),
  ],
)
def test_wrong_arguments_of_fit_codebook_are_named(features, size, said):
  with pytest.raises(ecos_jax.EcosError, match=said):
    ecos_jax.fit_codebook(features, size, KEY)


@pytest.mark.parametrize(
  "argument",
  [
    "size",
    "directions",
    "iterations",
    "tolerance",
    "sample_per_centroid",
    "key",
  ],
)
@pytest.mark.parametrize("value", [True, "x", None, [1], -1, float("nan")])
def test_wrong_types_are_named_before_anything_is_computed(argument, value):
  features = np.zeros((9, 4), np.float32)
  given = {"size": 2, "key": KEY} | {argument: value}
  with pytest.raises(ecos_jax.EcosError, match=f"`{argument}` "):
    ecos_jax.fit_codebook(features, **given)


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", None, True])
def test_a_wrong_batch_size_of_encode_is_named(value):
  images = np.zeros((2, 28, 28), np.uint8)
  with pytest.raises(ecos_jax.EcosError, match="`batch_size` "):
    ecos_jax.encode(images, batch_size=value)


def test_numbers_of_numpy_and_images_of_jax_are_as_good():
  images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
  features = ecos_jax.encode(images, "hog")
  np.testing.assert_array_equal(
    ecos_jax.encode(jax.numpy.asarray(images), "hog", batch_size=np.int64(256)),
    features,
  )
  size, p = np.int64(3), np.int32(4)
  ours = ecos_jax.fit_codebook(features, size, KEY, directions=p)
  theirs = ecos_jax.fit_codebook(features, 3, KEY, directions=4)
  assert ours.digest == theirs.digest


def test_rows_that_are_not_finite_are_named():
  features = np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)
  features[4321, 2] = np.inf
  with pytest.raises(ecos_jax.EcosError, match="rows 4321 hold"):
    ecos_jax.fit_codebook(features, 2, KEY, sample_per_centroid=1)


def test_wrong_terms_and_encoders_are_named(parts):
  codebook = parts[2]
  for options, said in (
    ({"sigma": 0.0}, "sigma"),
    ({"relation": "none"}, "relation"),
    ({"encoder": "hog"}, "`encoder` hog makes features with d = 72"),
    ({"encoder": "nothing"}, "unknown encoder"),
    ({"votes": 0}, "`votes` must lie in"),
    ({"weight": "x"}, "`weight` cannot be 'x'"),
  ):
    with pytest.raises(ecos_jax.EcosError, match=said):
      ecos_jax.ask(codebook, **options)


def test_the_import_loads_nothing_and_everything_is_there():
  program = """
import sys, ecos_jax
loaded = {"jax", "numpy", "absl"} & set(sys.modules)
assert not loaded, loaded
assert set(ecos_jax.__all__) <= set(dir(ecos_jax))
for name in ecos_jax.__all__:
  assert getattr(ecos_jax, name).__doc__
assert not {"tensorflow", "torch"} & set(sys.modules)
try:
  ecos_jax.nothing
except AttributeError as error:
  print(error)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert re.search("'ecos_jax' has no attribute 'nothing'", done.stdout)


@pytest.mark.parametrize("asked", ["signs", "both"])
def test_signed_votes_choose_samples_like_the_clients(parts, answered, asked):
  pool, private, *_ = parts
  codebook = ecos_jax.fit_codebook(pool, 6, KEY, directions=4)
  question = ecos_jax.ask(codebook, question=asked, votes=2)
  answer = answered(question, private)
  choice = ecos_jax.choose(pool, codebook, question, answer, 300, KEY)
  assert len(set(choice.indices.tolist())) == 300
  assert np.mean(choice.indices // 1000 == 1) > 0.9
  np.testing.assert_array_equal(
    choice.clusters, codebook.assignment[choice.indices]
  )
  with pytest.raises(ecos_jax.EcosError, match="`classes` needs an answer"):
    ecos_jax.choose(
      pool, codebook, question, answer, 300, KEY, classes="balanced"
    )
  # By class: the rows of the classes add up to all votes.
  question = ecos_jax.ask(codebook, question=asked, votes=2, classes=3)
  with pytest.raises(ecos_jax.EcosError, match="`labels`"):
    answered(question, private)
  answer = answered(question, private, np.arange(len(private)) % 3)
  for classes in ("ignore", "client"):
    choice = ecos_jax.choose(
      pool, codebook, question, answer, 300, KEY, classes=classes
    )
    assert len(set(choice.indices.tolist())) == 300
    assert np.mean(choice.indices // 1000 == 1) > 0.9


def test_without_words_the_question_is_about_all_that_it_can_be(parts):
  pool, _, codebook, *_ = parts

  def asked(codebook, **options):
    return messages.Query.from_bytes(ecos_jax.ask(codebook, **options))

  query = asked(codebook)
  assert query.centroids.shape == (6, pool.shape[1])
  # No more directions than numbers, and no more votes than directions.
  assert query.directions.shape == (pool.shape[1],) * 2
  assert query.votes == pool.shape[1]
  assert asked(codebook, relation="replace_one").directions is None
  assert asked(codebook._replace(directions=None)).directions is None


@pytest.mark.parametrize("asked", ["counts", "both"])
@pytest.mark.parametrize("within", ["kcenter", "nearest"])
def test_a_mean_of_10_000_spreads_changes_only_rounding(
  parts, answered, asked, within
):
  """Clusters, the client's votes and the choice are those near zero."""
  pool, private, *_ = parts
  # Multiples of 1/64 below 2^18: adding the offset is exact.
  pool, private = (np.round(a * 64) / 64 for a in (pool, private))
  found = []
  for offset in np.zeros(6, np.float32), np.float32([2e5, -1e5, 0, 1, 2e5, 9]):
    codebook = ecos_jax.fit_codebook(pool + offset, 3, KEY, directions=4)
    gaps = (pool + offset - codebook.centroids.astype(np.float64)[:, None]) ** 2
    np.testing.assert_array_equal(codebook.assignment, gaps.sum(2).argmin(0))
    question = ecos_jax.ask(codebook, question=asked, votes=2)
    answer = answered(question, private + offset)
    choice = ecos_jax.choose(
      pool + offset, codebook, question, answer, 300, KEY, within=within
    )
    sent = messages.Response.from_bytes(answer)
    votes = [part for part in (sent.scores, sent.sums) if part is not None]
    found.append([choice.indices, codebook.assignment, *votes])
  (near_zero, *exact), (far, *same) = found
  for one, other in zip(exact, same, strict=True):
    np.testing.assert_array_equal(one, other)
  # Centroids have steps of 1/64 there: who is next to them may change places.
  assert len(np.intersect1d(near_zero, far)) >= 297


def test_signs_need_directions_and_their_own_codebook(parts, answered):
  pool, private, without, *_ = parts
  without = without._replace(directions=None)
  with pytest.raises(ecos_jax.EcosError, match="`directions`"):
    ecos_jax.ask(without, question="signs")
  codebook = ecos_jax.fit_codebook(pool, 6, KEY, directions=4)
  question = ecos_jax.ask(codebook, question="signs", votes=2)
  answer = answered(question, private)
  with pytest.raises(ecos_jax.EcosError, match=r"sampling\.estimate"):
    ecos_jax.choose(
      pool, codebook, question, answer, 300, KEY, estimate="score"
    )
  with pytest.raises(ecos_jax.EcosError, match="not about `codebook`"):
    ecos_jax.choose(pool, without, question, answer, 300, KEY)


def test_jax_set_to_64_bits_changes_nothing():
  """As people of the sciences have it in a profile."""
  features = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
  books = []
  for wide in (False, True):
    with jax.enable_x64(wide):
      books.append(ecos_jax.fit_codebook(features, 5, jax.random.key(0)))
  # The directions are a tuple of arrays inside.
  for a, b in zip(*map(jax.tree.leaves, books), strict=True):
    assert np.asarray(a).dtype == np.asarray(b).dtype
    np.testing.assert_array_equal(a, b)

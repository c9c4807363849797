import jax
import numpy as np
from sklearn import cluster
from sklearn import datasets

from ecos_jax import config
from ecos_jax import distributed
from ecos_jax.cloud import adopt
from ecos_jax.cloud import codebook


def _bank(path, rows=3000, shards=3):
  features, _, centers = datasets.make_blobs(
    rows,
    8,
    centers=6,
    cluster_std=0.1,
    random_state=0,
    return_centers=True,
  )
  path.mkdir()
  for i, part in enumerate(np.array_split(features, shards)):
    np.save(path / f"part{i}.npy", part.astype(np.float32))
  bank = adopt.from_npy(path, encoder="e", pool="p")
  return bank, features.astype(np.float32), centers


def test_the_codebook_of_blobs_is_their_centres(tmp_path):
  bank, features, centers = _bank(tmp_path / "bank")
  out = tmp_path / "codebook"
  out.mkdir()
  fitted = codebook.build(
    out,
    bank,
    config.Codebook(size=6, sample_per_centroid=100),
    jax.random.key(0),
    distributed.mesh(),
  )
  assert fitted.converged
  book = codebook.read(out)
  reference = cluster.KMeans(6, init=centers, n_init=1).fit(features)
  order = np.lexsort(book.centroids.T)
  expected = np.lexsort(reference.cluster_centers_.T)
  # Fitted on a sample of 100 a blob, of standard deviation 0.1.
  np.testing.assert_allclose(
    book.centroids[order], reference.cluster_centers_[expected], atol=0.05
  )
  renamed = np.empty(6, int)
  renamed[order] = expected
  np.testing.assert_array_equal(renamed[book.assignment], reference.labels_)
  np.testing.assert_array_equal(
    book.sizes, np.bincount(book.assignment, minlength=6)
  )


def test_centroids_of_a_bank_in_float16_lose_nothing_in_float16(tmp_path):
  features = np.random.default_rng(0).random((600, 5), np.float32)
  folder = tmp_path / "bank"
  folder.mkdir()
  np.save(folder / "part.npy", features.astype(np.float16))
  bank = adopt.from_npy(folder, encoder="e", pool="p")
  out = tmp_path / "codebook"
  out.mkdir()
  codebook.build(
    out,
    bank,
    config.Codebook(size=12),
    jax.random.key(0),
    distributed.mesh(),
  )
  book = codebook.read(out)
  assert book.centroids.dtype == np.float32
  np.testing.assert_array_equal(
    book.centroids.astype(np.float16), book.centroids
  )
  rows = features.astype(np.float16).astype(np.float64)
  gaps = ((rows[:, None] - book.centroids) ** 2).sum(2)
  np.testing.assert_array_equal(book.assignment, gaps.argmin(1))


def test_centroids_far_from_zero_stay_float32():
  random = np.random.default_rng(0)
  places = 300 + np.repeat(np.eye(3), 50, axis=0)
  features = (places + random.normal(size=(150, 3))).astype(np.float16)
  book = codebook.fit(features, 3, jax.random.key(0))
  for r, centroid in enumerate(book.centroids):
    members = features[book.assignment == r].astype(np.float64)
    np.testing.assert_allclose(centroid, members.mean(axis=0), rtol=1e-5)


def test_the_digest_tells_two_codebooks_apart(tmp_path):
  bank, _, _ = _bank(tmp_path / "bank")
  digests = []
  for name, seed in (("a", 0), ("b", 0), ("c", 1)):
    out = tmp_path / name
    out.mkdir()
    codebook.build(
      out,
      bank,
      config.Codebook(size=20),
      jax.random.key(seed),
      distributed.mesh(),
    )
    digests.append(codebook.read(out).digest)
  assert digests[0] == digests[1] != digests[2]


def test_mini_batches(tmp_path):
  bank, features, centers = _bank(tmp_path / "bank")
  out = tmp_path / "codebook"
  out.mkdir()
  options = config.Codebook(size=6, algorithm=config.Algorithm.MINI_BATCH)
  codebook.build(out, bank, options, jax.random.key(0), distributed.mesh())
  book = codebook.read(out)
  gaps = np.linalg.norm(book.centroids[:, None] - centers, axis=2)
  assert gaps.min(axis=1).max() < 0.1
  assert book.sizes.sum() == len(features)


def test_a_second_codebook_lies_in_some_clusters_of_the_first(
  tmp_path, monkeypatch
):
  bank, features, centers = _bank(tmp_path / "bank")
  monkeypatch.setattr(codebook, "_CHUNK_ROWS", 700)
  first, second = tmp_path / "first", tmp_path / "second"
  first.mkdir()
  second.mkdir()
  options = config.Codebook(size=6, sample_per_centroid=100)
  arguments = jax.random.key(0), distributed.mesh()
  codebook.build(first, bank, options, *arguments)
  book = codebook.read(first)
  covered = np.array([True, False, False, True, True, False])
  part = codebook.Part(book, covered)
  inside = covered[book.assignment]
  assert part.size == inside.sum()

  options = config.Codebook(size=9, sample_per_centroid=20)
  codebook.build(second, bank, options, *arguments, part)
  book = codebook.read(second, codebook.read(second).digest)
  np.testing.assert_array_equal(book.assignment >= 0, inside)
  gaps = np.sum((features[inside, None] - book.centroids) ** 2, axis=2)
  labels = book.assignment[inside]
  np.testing.assert_array_equal(book.sizes, np.bincount(labels, minlength=9))
  chosen = gaps[np.arange(len(gaps)), labels]
  np.testing.assert_allclose(chosen, gaps.min(axis=1), atol=1e-3)
  blobs = np.argmin(np.sum((features[:, None] - centers) ** 2, axis=2), axis=1)
  near = np.sum((book.centroids[:, None] - centers) ** 2, axis=2).argmin(axis=1)
  assert set(near) == set(blobs[inside])


def test_a_sample_of_some_clusters_is_uniform(monkeypatch):
  monkeypatch.setattr(codebook, "_CHUNK_ROWS", 7)
  assignment = np.resize(np.array([0, 1, 2, -1, 2], np.int32), 100)
  sizes = codebook.counts(assignment, 3)
  np.testing.assert_array_equal(sizes, [20, 20, 40])
  book = codebook.Codebook(np.zeros((3, 1), np.float32), sizes, assignment)
  # No index of the assignment -1 may mean the last cluster.
  part = codebook.Part(book, np.array([True, False, False]))
  inside = np.flatnonzero(assignment == 0)
  everything = part.subsample(20, jax.random.key(0))
  np.testing.assert_array_equal(everything, inside)
  draws = [part.subsample(5, jax.random.key(i)) for i in range(400)]
  counts = np.bincount(np.concatenate(draws), minlength=100)
  assert all(len(set(draw)) == 5 for draw in draws)
  assert set(np.flatnonzero(counts)) == set(inside)
  # 100 are expected, with a deviation below 9.
  assert abs(counts[inside] - 100).max() < 45

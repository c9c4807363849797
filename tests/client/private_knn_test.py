import dataclasses
import itertools
import math
from pathlib import Path
import re

import dp_accounting
from dp_accounting import pld
import numpy as np
from PIL import Image
import pytest
from scipy import stats
from sklearn import neighbors as sklearn_neighbors

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import encoding
from ecos_jax.client import neighbours
from ecos_jax.client import private_knn
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.privacy import accounting
from ecos_jax.privacy import mechanisms
from tests.client.label_requests import TERMS
from tests.client.label_requests import changed
from tests.client.label_requests import request_for


def _label(request, samples, terms=TERMS, answers=None, seed=None):
  m = len(request.features)
  labeller = private_knn.Labeller(terms, m, answers or m, seed)
  return private_knn.label(request, samples, labeller)


# What is drawn.


def test_without_noise_the_labels_are_those_of_scikit_learn(
  request_, samples, monkeypatch
):
  monkeypatch.setattr(mechanisms.Mechanism, "noised", lambda self, x: x)
  response = _label(request_, samples, changed(gamma=1.0, threshold=0.0))
  model = sklearn_neighbors.KNeighborsClassifier(15).fit(*samples[:2])
  np.testing.assert_array_equal(
    response.labels, model.predict(request_.features)
  )
  # The threshold keeps those with as many votes.
  response = _label(request_, samples, changed(gamma=1.0, threshold=9.0))
  votes = 15 * model.predict_proba(request_.features).max(1)
  np.testing.assert_array_equal(response.labels >= 0, votes > 8.5)


def test_without_noise_a_subsample_votes_as_in_scikit_learn(
  request_, samples, monkeypatch
):
  monkeypatch.setattr(mechanisms.Mechanism, "noised", lambda self, x: x)
  drawn = []
  subsample = mechanisms.Mechanism.subsample

  def recorded(self, n):
    drawn.append(subsample(self, n))
    return drawn[-1]

  monkeypatch.setattr(mechanisms.Mechanism, "subsample", recorded)
  response = _label(request_, samples, changed(threshold=0.0))
  screened, voted = (taken.reshape(60, -1) for taken in drawn)
  # Two independent subsamples of the right size.
  for taken in (screened, voted):
    assert stats.binomtest(taken.sum(), taken.size, 0.5).pvalue > 1e-6
  assert abs(np.corrcoef(screened.ravel(), voted.ravel())[0, 1]) < 0.05
  for row in range(60):
    model = sklearn_neighbors.KNeighborsClassifier(15)
    model.fit(samples.features[voted[row]], samples.labels[voted[row]])
    expected = model.predict(request_.features[row : row + 1])[0]
    assert response.labels[row] == expected


def _noise(sigma):
  x = np.arange(-60, 61)
  mass = np.exp(-(x**2) / (2 * sigma**2))
  return x, mass / mass.sum()


@pytest.mark.parametrize("seed", [None, 7])
def test_the_labels_have_the_distribution_of_the_noise(seed, monkeypatch):
  # What so many labels cost takes long to compute, and does not matter here.
  monkeypatch.setattr(accounting.Cost, "epsilon", lambda *terms: 0.0)
  # Five votes for class 0, three for class 1, none for class 2, always.
  samples = private_knn.Samples(
    np.zeros((8, 2), np.float32), np.array([0, 0, 0, 0, 0, 1, 1, 1])
  )
  terms = changed(neighbours=8, gamma=1.0, threshold=7.0)
  m = 6000
  request = request_for(np.zeros((m, 2)), terms)
  labels = _label(request, samples, terms, seed=seed).labels
  x, screen = _noise(terms.sigma_screen)
  passes = screen[x + 5 >= 7].sum()
  # The lowest class among the largest of three noisy counts.
  x, mass = _noise(terms.sigma_vote)
  a, b, c = np.meshgrid(x + 5, x + 3, x, indexing="ij")
  joint = mass[:, None, None] * mass[:, None] * mass
  winner = np.argmax(np.stack([a, b, c]), axis=0)
  wins = np.bincount(winner.ravel(), weights=joint.ravel())
  expected = m * np.concatenate([[1 - passes], passes * wins])
  assert stats.chisquare(np.bincount(labels + 1), expected).pvalue > 1e-5


def test_the_noise_on_the_counts_passes_a_chi_square_test():
  labeller = private_knn.Labeller(TERMS, 10, 10)
  for step, sigma in ((0, 4.0), (1, 3.0)):
    drawn = labeller.mechanism(step, 0).noised(np.zeros(20_000, np.int64))
    x, mass = _noise(sigma)
    inner = np.abs(x) <= 3 * sigma
    counts = [np.sum(drawn == value) for value in x[inner]]
    expected = 20_000 * mass[inner]
    rest = 20_000 - sum(counts)
    result = stats.chisquare(
      [*counts, rest], [*expected, 20_000 - expected.sum()]
    )
    assert result.pvalue > 1e-5


def test_a_seed_draws_every_block_anew_and_says_that_it_is_not_private(
  request_, samples
):
  first = _label(request_, samples, seed=3)
  assert first.to_bytes() == _label(request_, samples, seed=3).to_bytes()
  assert first.to_bytes() != _label(request_, samples, seed=4).to_bytes()
  assert not first.private
  assert _label(request_, samples).private
  labeller = private_knn.Labeller(TERMS, 60, 60, 3)
  draws = [
    labeller.mechanism(step, start).subsample(200)
    for step in (0, 1)
    for start in (0, 1, 512)
  ]
  assert len(np.unique(draws, axis=0)) == len(draws)


# What it costs, and where it stops.


def test_it_stops_when_the_answers_are_used_up(request_, samples):
  terms = changed(threshold=-100.0)
  response = _label(request_, samples, terms, answers=17)
  assert (response.labels[:17] >= 0).all()
  assert (response.labels[17:] == -1).all()
  assert (response.answers, response.considered) == (17, 17)
  # The price is that of the plan, also where fewer are given.
  nobody = _label(request_, samples, changed(threshold=1000.0), answers=17)
  assert (nobody.labels == -1).all()
  assert nobody.considered == 60
  assert nobody.epsilon == response.epsilon


def _independent(terms, requests, answers, scores=None):
  """Epsilon by dp-accounting's own events, with continuous Gaussians."""
  accountant = pld.PLDAccountant(
    dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  )

  def compose(noise, gamma, times):
    accountant.compose(
      dp_accounting.PoissonSampledDpEvent(
        gamma, dp_accounting.GaussianDpEvent(noise)
      ),
      times,
    )

  compose(terms.sigma_screen, terms.gamma, requests)
  # Two counts move by one each: a sensitivity of the root of two.
  compose(terms.sigma_vote / 2**0.5, terms.gamma, answers)
  if scores is not None:
    compose(*scores, 1)
  return accountant.get_epsilon(terms.delta)


@pytest.mark.parametrize(("requests", "answers"), [(200, 30), (40, 40)])
def test_epsilon_agrees_with_an_independent_computation(requests, answers):
  terms = changed(sigma_screen=20.0, sigma_vote=9.0)
  cost = private_knn.Labeller(terms, requests, answers).cost
  expected = _independent(terms, requests, answers)
  assert cost.epsilon(1e-5, "add_remove") == pytest.approx(expected, rel=0.02)
  both = cost + accounting.Cost((accounting.Release(10.0, 0.8),))
  expected = _independent(terms, requests, answers, (10.0, 0.8))
  assert both.epsilon(1e-5, "add_remove") == pytest.approx(expected, rel=0.02)


def test_a_plan_uses_the_budget_up_and_no_more():
  spent = accounting.Cost((accounting.Release(5.0, 0.8),))
  terms = changed(sigma_screen=30.0, sigma_vote=6.0)

  def cost(answers):
    return accounting.labels(terms, 100, answers)

  def alone(answers):
    return cost(answers).epsilon(1e-5, "add_remove")

  planned = private_knn.plan(terms, 100, epsilon=2.0).answers
  assert alone(planned) <= 2.0 < alone(planned + 2)
  # The ledger's budget counts what was spent before.
  planned = private_knn.plan(
    terms,
    100,
    epsilon=9.0,
    composed=lambda cost: (spent + cost).epsilon(1e-5, "add_remove"),
    max_epsilon=2.0,
  ).answers
  for answers, fits in ((planned, True), (planned + 2, False)):
    total = (spent + cost(answers)).epsilon(1e-5, "add_remove")
    assert (total <= 2.0) == fits
  assert private_knn.plan(terms, 100, epsilon=1e3).answers == 100
  assert private_knn.plan(terms, 100, epsilon=None).answers == 100
  for too_little in (0.3, 0.0, math.nan):
    with pytest.raises(errors.EcosError, match="nothing was spent"):
      private_knn.plan(terms, 100, epsilon=too_little)


def test_a_replacement_is_refused_since_nothing_is_proven():
  with pytest.raises(errors.EcosError, match="add_remove"):
    private_knn.Labeller(changed(relation="replace_one"), 5, 5)


# The data.


def test_who_has_no_class_does_not_vote(samples):
  labels = samples.labels.copy()
  labels[::3], labels[1::3] = -1, 7
  kept = np.arange(2, 240, 3)
  blocks = np.array_split(samples.features, 3)
  data = encoding.Private(240, lambda: blocks, labels)
  voters = private_knn.voting(data, 3)
  np.testing.assert_array_equal(voters.features, samples.features[kept])
  np.testing.assert_array_equal(voters.labels, samples.labels[kept])


def _opened(request, source, batch_size):
  labels = source.labels(np.arange(len(source)))
  return encoding.opened(request, source, batch_size=batch_size, labels=labels)


def test_images_are_encoded_with_the_request_s_encoder(samples):
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (21, 28, 28, 3), np.uint8)
  features = registry.encode(registry.get("hog"), images)
  source = pools.ArraySource("mine", images, samples.labels[:21])
  request = request_for(features)
  encoded = private_knn.voting(_opened(request, source, 8), 3)
  np.testing.assert_allclose(encoded.features, features, atol=1e-6)
  np.testing.assert_array_equal(encoded.labels, samples.labels[:21])
  other = dataclasses.replace(request_for(features), encoder_digest="0" * 64)
  with pytest.raises(messages.ProtocolError, match="encoder_digest"):
    private_knn.voting(_opened(other, source, 8), 3)


def _folder_of(path, names):
  """Makes a folder of images, one for each name, each another."""
  for number, name in enumerate(names):
    pixels = np.random.default_rng(number).integers(
      0, 256, (28, 28, 3), dtype=np.uint8
    )
    file = path / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.mark.parametrize(
  ("classes", "folders"),
  [
    (("numbers",), ("0", "1", "2")),
    (("cat", "ant", "bee"), ("cat", "ant", "bee")),
  ],
)
def test_one_file_more_or_less_moves_one_vote(tmp_path, classes, folders):
  """Neighbours are folders too: only the vote of the file that goes changes.

  Among the files are the only one of its class, a stray one, and one of a
  folder that is no class.
  """
  names = [f"{folders[0]}/only", "stray", "other/x", f"{folders[1]}/deep/y"]
  names += [f"{folder}/{i}" for folder in folders[1:] for i in range(9)]
  _folder_of(tmp_path, names)
  random = np.random.default_rng(3)
  images = random.integers(0, 256, (12, 28, 28, 3), dtype=np.uint8)
  request = request_for(registry.encode(registry.get("hog"), images))

  def votes():
    source = pools.open_source(str(tmp_path), classes=classes)
    samples = private_knn.voting(_opened(request, source, 64), 3)
    voters = neighbours.Neighbours(*samples[:2], k=7, classes=3)
    taken = np.ones((12, len(voters)), bool)
    return voters.votes(request.features, taken), len(voters)

  whole, voting = votes()
  assert voting == 19
  for name in names:
    file = tmp_path / f"{name}.png"
    data = file.read_bytes()
    file.unlink()
    moved, fewer = votes()
    change = moved - whole
    file.write_bytes(data)
    folder = file.parent.relative_to(tmp_path).as_posix()
    if folder not in folders:
      assert fewer == voting
      assert not change.any()
      continue
    # It loses its vote where it had one, and the next nearest gets it.
    assert fewer == voting - 1
    own = folders.index(folder)
    assert set(change[:, own]) <= {-1, 0}
    assert (np.delete(change, own, 1).sum(1) == -change[:, own]).all()
    assert np.abs(change).sum(1).max() <= 2


def test_abstaining_and_not_being_considered_are_told_apart():
  """usps, as reported: 75.0 % without a label, of which 55.3 % abstained."""
  text = private_knn.outcome(2000, 1117, 499)
  assert "499 of 2,000 answered, 618 of 1,117 abstained (55.3 %)" in text
  assert "883 not considered: the budget is used up" in text
  assert "not considered" not in private_knn.outcome(2000, 2000, 410)


@pytest.mark.slow
def test_the_table_in_the_documentation_is_what_is_computed():
  text = Path("docs/privacy.md").read_text()
  number = r"([\d.]+)"
  rows = re.findall(
    r"^\| " + r" \| ".join([number] * 7) + r" \|$", text, re.MULTILINE
  )
  assert len(rows) == 8
  for gamma, k, screen, vote, requests, answers, shown in rows:
    terms = changed(
      neighbours=int(k),
      gamma=float(gamma),
      sigma_screen=float(screen),
      sigma_vote=float(vote),
    )
    cost = accounting.labels(terms, int(requests), int(answers))
    epsilon = cost.epsilon(1e-5, "add_remove")
    assert float(shown) == math.ceil(100 * epsilon) / 100


# Persons.


def _drawn(ids, gamma):
  """Yields every draw of one sample each of some persons, with its weight."""
  persons = [np.flatnonzero(ids == name) for name in np.unique(ids)]
  choices = [
    [(1 - gamma, None), *((gamma / len(own), row) for row in own)]
    for own in persons
  ]
  for draw in itertools.product(*choices):
    rows = [row for _, row in draw if row is not None]
    yield math.prod(weight for weight, _ in draw), rows


def _noisy(votes, ids, sigma, gamma):
  """Returns the laws of the noisy largest count [x] and counts [x, x]."""
  x, p0 = _noise(sigma)
  largest, both = np.zeros(len(x)), np.zeros((len(x), len(x)))
  for weight, rows in _drawn(ids, gamma):
    taken = np.zeros((1, len(ids)), bool)
    taken[0, rows] = True
    (counts,) = votes.votes(np.zeros((1, 1), np.float32), taken)
    shifted = [np.roll(p0, count) for count in counts]
    largest += weight * np.roll(p0, counts.max())
    both += weight * np.multiply.outer(*shifted)
  return largest, both


@pytest.mark.parametrize("seed", range(4))
def test_a_person_is_worth_no_more_than_a_sample_by_brute_force(seed):
  """A person with three samples, of two classes, near and far.

  The bounds are those of one sample: one count up, and one down with it.
  """
  random, sigma, gamma = np.random.default_rng(seed), 1.5, 0.6
  ids = np.array([0, 1, 1, 2, 3, 3, 3])
  features = random.normal(size=(7, 1)).astype(np.float32)
  labels = random.integers(0, 2, 7)

  def laws(rows):
    votes = neighbours.Neighbours(features[rows], labels[rows], 2, 2)
    return _noisy(votes, ids[rows], sigma, gamma)

  _, p0 = _noise(sigma)
  up, down = np.roll(p0, 1), np.roll(p0, -1)
  absent = p0, np.outer(p0, p0)
  present = (
    (1 - gamma) * p0 + gamma * up,
    (1 - gamma) * absent[1] + gamma * np.outer(up, down),
  )
  pairs = zip(
    laws(slice(0, 7)), laws(slice(0, 4)), absent, present, strict=True
  )
  for with_one, without, q, m in pairs:
    for epsilon in (0.1, 0.4, 1.0, 2.0):
      grow = math.exp(epsilon)
      for p, other, a, b in (
        (with_one, without, m, q),
        (without, with_one, q, m),
      ):
        found = np.maximum(p - grow * other, 0).sum()
        bound = np.maximum(a - grow * b, 0).sum()
        assert found <= bound * (1 + 1e-9) + 1e-12


def test_of_each_person_one_labelled_sample_votes(monkeypatch):
  monkeypatch.setattr(mechanisms.Mechanism, "noised", lambda self, x: x)
  # 30 samples of one person against 5 of five persons; 9 have no class.
  labels = np.array([0] * 30 + [1] * 5 + [-1] * 9)
  ids = np.array([9] * 30 + [1, 2, 3, 4, 5] + [6] * 9)
  features = np.zeros((44, 5), np.float32)
  data = encoding.Private(44, lambda: [features], labels, ids)
  samples = private_knn.voting(data, 3)
  terms = changed(gamma=1.0, neighbours=44, threshold=5.0, unit="person")
  request = request_for(np.zeros((20, 5)), terms)
  assert (_label(request, samples, terms).labels == 1).all()
  by_sample = dataclasses.replace(terms, unit="sample")
  with pytest.raises(errors.EcosError, match="`persons`"):
    _label(request, samples, by_sample)
  samples = samples._replace(persons=None)
  assert (_label(request, samples, by_sample).labels == 0).all()

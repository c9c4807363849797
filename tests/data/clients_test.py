import numpy as np
import pytest

from ecos_jax import config
from ecos_jax import errors
from ecos_jax.data import clients
from ecos_jax.data import digits
from ecos_jax.data import pools
from ecos_jax.data import problem


@pytest.fixture(name="cells")
def _cells():
  return np.repeat(np.arange(4), [600, 300, 200, 100])


@pytest.mark.parametrize("alpha", [0.01, 1.0, 1e5])
def test_every_client_has_its_size_and_no_sample_has_two_owners(cells, alpha):
  owners = clients.dirichlet(cells, 7, 100, alpha, np.random.default_rng(1))
  counts = np.bincount(owners + 1, minlength=8)
  assert counts.tolist() == [len(cells) - 700, *7 * [100]]


def test_all_samples_can_be_given_away(cells):
  owners = clients.dirichlet(cells, 12, 100, 0.1, np.random.default_rng(1))
  assert np.bincount(owners).tolist() == 12 * [100]


def test_the_mixtures_are_those_of_a_dirichlet_distribution():
  """Their mean and variance; numpy's own draws are the reference."""
  cells = np.repeat(np.arange(3), [50_000, 30_000, 20_000])
  shares = np.array([0.5, 0.3, 0.2])
  for alpha in (0.5, 4.0):
    random = np.random.default_rng(2)
    owners = clients.dirichlet(cells, 1000, 50, alpha, random)
    held = np.zeros((1000, 3))
    np.add.at(held, (owners[owners >= 0], cells[owners >= 0]), 1 / 50)
    drawn = random.dirichlet(alpha * shares, 20_000)
    expected = random.multinomial(50, drawn) / 50
    np.testing.assert_allclose(held.mean(0), shares, atol=0.05)
    np.testing.assert_allclose(held.var(0), expected.var(0), rtol=0.2)


def _data(**fields):
  return config.Data(client="mnist", train_images=400, test_images=90, **fields)


def test_a_benchmark_is_divided():
  whole = digits.load(_data(), 1)
  divided = problem.load(_data(clients=5, client_images=20, alpha=0.1), 1)
  assert len(divided.client) == 100
  assert divided.owners.tolist() == np.repeat(range(5), 20).tolist()
  every = np.arange(100)
  images = whole.client.images(np.arange(len(whole.client)), 28)
  rows = {image.tobytes() for image in images}
  own = [image.tobytes() for image in divided.client.images(every, 28)]
  assert len(set(own)) == 100 and set(own) <= rows
  assert divided.pool.digest == whole.pool.digest
  assert divided.client.digest != whole.client.digest
  again = problem.load(_data(clients=5, client_images=20, alpha=0.1), 1)
  assert again.client.digest == divided.client.digest


def test_one_client_keeps_all():
  assert problem.load(_data(), 1).owners is None


def test_too_few_samples_are_refused():
  with pytest.raises(
    errors.EcosError, match=r"need 300 samples, and mnist has"
  ):
    problem.load(_data(clients=5, client_images=60), 1)


def test_test_samples_count_as_the_clients_classes_do():
  divided = problem.load(_data(clients=4, client_images=20, alpha=0.1), 3)
  weights = clients.test_weights(divided)
  np.testing.assert_allclose(weights.sum(axis=1), 1)
  own = divided.client.labels(np.arange(80))
  tested = divided.test.labels(np.arange(len(divided.test)))
  for i in range(4):
    for label in np.unique(tested):
      share = np.mean(own[divided.owners == i] == label)
      assert weights[i, tested == label].sum() == pytest.approx(share, abs=0.1)


def test_clients_of_several_domains():
  data = config.Data(
    client="optdigits+mnist",
    train_images=400,
    test_images=90,
    clients=4,
    alpha=0.05,
    client_images=40,
  )
  divided = problem.load(data, 1)
  assert divided.client_source is None
  assert set(divided.pool.source_names) >= {"optdigits", "mnist"}
  own, tested = clients.cells(divided)
  assert own.max() >= 10 and tested.max() >= 10
  # With so small an alpha a client is mostly of one class of one domain.
  most = [np.bincount(own[divided.owners == i]).max() / 40 for i in range(4)]
  assert np.mean(most) > 0.5
  with pytest.raises(errors.EcosError, match="several, with"):
    problem.load(config.Data(client="mnist+mnist"), 1)


def test_a_client_of_whose_classes_the_test_has_none():
  own, tested = np.array([4, 4, 0, 1]), np.array([0, 1, 1])
  samples = [
    pools.ArraySource(name, np.zeros((len(labels), 2, 2, 3), np.uint8), labels)
    for name, labels in (("own", own), ("test", tested))
  ]
  made = problem.Problem(
    pools.Pool(samples[1:]), *samples, None, 5, owners=np.array([0, 0, 1, 1])
  )
  weights = clients.test_weights(made)
  np.testing.assert_allclose(weights, [[1 / 3] * 3, [1 / 2, 1 / 4, 1 / 4]])


def test_domains_have_a_concentration_of_their_own():
  random = np.random.default_rng(0)
  # Domains 3 and 7, of six and four tenths, with ten classes each.
  domains = np.where(random.random(60_000) < 0.6, 3, 7)
  cells = random.integers(10, size=len(domains)) + 10 * domains

  def shares(alpha, domain_alpha):
    owners = clients.dirichlet(
      *(cells, 100, 100, alpha, np.random.default_rng(1)),
      *(domains, domain_alpha),
    )
    given = [owners == i for i in range(100)]
    of_first = np.array([np.mean(domains[rows] == 3) for rows in given])
    classes = np.array(
      [np.bincount(cells[rows] % 10, minlength=10) for rows in given]
    )
    return of_first, classes / 100

  # One domain of each client, and every class in it.
  of_first, classes = shares(2000.0, 0.05)
  assert np.mean((of_first < 0.1) | (of_first > 0.9)) > 0.8
  assert np.mean(of_first) == pytest.approx(0.6, abs=0.2)
  assert classes.max() < 0.35
  # The other way round.
  of_first, classes = shares(0.1, 1e4)
  assert np.abs(of_first - 0.6).max() < 0.25
  assert np.mean(classes.max(axis=1)) > 0.4

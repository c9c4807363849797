import numpy as np
import pytest

from ecos_jax import config
from ecos_jax import errors
from ecos_jax.data import icons
from ecos_jax.data import problem
from tests.data import made_icons


def load(folder, *, seed=1, client="papirus", split=config.Split.ID_OOD):
  data = config.Data(
    benchmark=config.Benchmark.ICONS, dir=folder, client=client, split=split
  )
  return problem.load(data, seed)


@pytest.fixture
def folder(tmp_path):
  return made_icons.write(tmp_path)


def names(source):
  """The concepts of a source's images, found by the images' bytes."""
  arrays = made_icons.arrays()
  of = {
    image.tobytes(): name
    for image, name in zip(arrays["images"], arrays["names"], strict=True)
  }
  images = source.images(np.arange(len(source)), 64)
  return [of[image.tobytes()] for image in images]


def test_no_concept_is_in_two_parts(folder):
  found = load(folder)
  pool, client, test = map(names, (found.pool, found.client, found.test))
  assert len(client) == len(set(client)) == len(test) == 8
  assert not set(client) & set(test)
  # The pool has all icons of the other concepts.
  asked = {*client, *test}
  every = made_icons.arrays()["names"].tolist()
  assert sorted(pool) == sorted(name for name in every if name not in asked)
  assert found.pool.source_names == icons.THEMES[:3]
  assert found.client_source == 1
  assert found.classes == 8


def test_labels_belong_to_the_images(folder):
  found = load(folder)
  for source in (found.pool, found.client, found.test):
    concepts = [int(name.split()[1]) for name in names(source)]
    labels = source.labels(np.arange(len(source)))
    assert labels.tolist() == [concept % 8 for concept in concepts]


def test_out_of_distribution_the_pool_has_none_of_the_theme(folder):
  inside, outside = load(folder), load(folder, split=config.Split.OOD)
  assert outside.pool.source_names == ("oxygen", "faenza")
  assert outside.client_source is None
  assert len(outside.client) == 16
  assert outside.test.digest == inside.test.digest


def test_the_split_depends_on_the_seed_and_on_nothing_else(folder):
  digests = [load(folder, seed=seed).client.digest for seed in (1, 1, 2)]
  assert digests[0] == digests[1] != digests[2]


def test_a_remote_client_has_no_data_here(folder):
  data = config.Data(
    benchmark=config.Benchmark.ICONS, dir=folder, client="papirus"
  )
  assert problem.load(data, 1, remote=True)[1:4] == (None, None, None)


def test_refuses_an_unknown_theme(folder):
  with pytest.raises(
    errors.EcosError, match=r"usps.*oxygen, papirus, faenza, or"
  ):
    load(folder, client="usps")


@pytest.mark.parametrize("missing", [True, False])
def test_refuses_no_folder_or_no_file(tmp_path, missing):
  with pytest.raises(errors.EcosError, match=r"`data\.dir`.*icons\.npz"):
    load(None if missing else str(tmp_path))


@pytest.mark.parametrize(
  "wrong",
  [
    {"labels": np.full(72, 8)},
    {"labels": np.zeros(71, int)},
    {"labels": np.zeros(72)},
    {"domains": np.full(72, -1)},
    {"names": np.array(["a"])},
    {"domain_names": np.array(["oxygen", "papirus"])},
  ],
)
def test_refuses_other_arrays(tmp_path, wrong):
  made_icons.write(tmp_path, **wrong)
  with pytest.raises(errors.EcosError, match=r"icons\.npz must hold images"):
    load(str(tmp_path))


def test_refuses_a_damaged_file(tmp_path):
  (tmp_path / "icons.npz").write_bytes(b"no arrays")
  with pytest.raises(errors.EcosError, match=r"data\.dir.*icons\.npz"):
    load(str(tmp_path))


def test_refuses_a_theme_too_small_to_split(tmp_path):
  arrays = made_icons.arrays()
  kept = (arrays["domains"] != 1) | (np.arange(72) % 24 < 2)
  rows = {k: arrays[k][kept] for k in ("images", "labels", "domains", "names")}
  made_icons.write(tmp_path, **rows)
  with pytest.raises(errors.EcosError, match="too few icons of papirus"):
    load(str(tmp_path))

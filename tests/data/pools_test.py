import hashlib
import io
import itertools
import os
from pathlib import Path
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from ecos_jax import errors
from ecos_jax.data import folder
from ecos_jax.data import pools
from ecos_jax.data import tfds_split
from tests.data import made_images


def decode(data):
  return np.asarray(Image.open(io.BytesIO(data)))


def write_tfds(directory, files, *, feature="image", labels=True, thumb=None):
  """Writes the TFDS dataset `shapes` of image files, labels 10, 11, ...

  `thumb` is the file of a second image feature, the same for all samples.
  """
  path = directory / "shapes" / "1.0.0"
  path.mkdir(parents=True)
  features = {feature: tfds.features.Image(shape=(None, None, None))}
  if thumb is not None:
    features["thumb"] = tfds.features.Image(shape=(None, None, 3))
  if labels:
    features["label"] = tfds.features.Scalar(np.int64)
  examples = [{feature: io.BytesIO(data)} for data in files]
  for index, example in enumerate(examples):
    if thumb is not None:
      example["thumb"] = io.BytesIO(thumb)
    if labels:
      example["label"] = 10 + index
  identity = tfds.core.DatasetIdentity(
    name="shapes",
    version=tfds.core.Version("1.0.0"),
    data_dir=str(path),
    module_name="shapes",
  )
  writer = tfds.core.SequentialWriter(
    tfds.core.DatasetInfo(
      builder=identity, features=tfds.features.FeaturesDict(features)
    ),
    100,
    file_format="array_record",
  )
  writer.initialize_splits(["train"])
  writer.add_examples({"train": examples})
  writer.close_all()


class TestTfdsSource:
  def test_reads_stored_files(self, tmp_path):
    grey, colour = made_images.random(9, 9), made_images.random(9, 12, 3)
    files = []
    for pixels, kind in ((grey, "PNG"), (colour, "PNG"), (colour, "JPEG")):
      file = io.BytesIO()
      Image.fromarray(pixels).save(file, kind)
      files.append(file.getvalue())
    write_tfds(tmp_path, files)
    source = tfds_split.TfdsSource("shapes", "train", str(tmp_path))
    assert (source.name, len(source)) == ("shapes:train", 3)
    assert [source.encoded(index) for index in range(3)] == files
    images = source.images(np.arange(2), 9)
    np.testing.assert_array_equal(images[0], np.repeat(grey[..., None], 3, -1))
    assert images.shape == (2, 9, 9, 3)
    assert source.labels(np.array([2, 0])).tolist() == [12, 10]
    assert source.digest == "shapes/1.0.0:train"
    part = tfds_split.TfdsSource("shapes:1.0.0", "train[1:]", str(tmp_path))
    assert len(part) == 2
    np.testing.assert_array_equal(part.images(np.array([0]), 9), images[1:2])

  def test_classes_are_chosen_by_name(self):
    name = "domainnet/real"
    with tfds.testing.mock_data(num_examples=40):
      everything = tfds_split.TfdsSource(name, "train")
      names = tfds.builder(name).info.features["label"].names
      classes = names[:99:-1]  # the last ones, from the last
      some = tfds_split.TfdsSource(name, "train", None, classes)
      labels = everything.labels(np.arange(40))
      assert (everything.classes, some.classes) == (345, 245)
      expected = np.where(labels >= 100, 344 - labels, -1)
      assert some.labels(np.arange(40)).tolist() == expected.tolist()
      known = pools.labelled(some)
      places = np.flatnonzero(expected >= 0)
      assert 0 < len(known) == len(places) < 40
      rows = np.arange(len(known))
      np.testing.assert_array_equal(
        known.images(rows, 8), everything.images(places, 8)
      )
      assert known.labels(rows).tolist() == expected[places].tolist()
      with pytest.raises(
        errors.EcosError, match=r"no class 'Zebra' .near: zebra"
      ):
        tfds_split.TfdsSource(name, "train", None, ["whale", "Zebra"])
      numbered = pools.open_source(f"tfds:{name}:train", None, ("numbers",))
      assert numbered.classes == 345

  def test_labels_are_unknown_without_any(self, tmp_path):
    source = pools.ArraySource("a", made_images.random(2, 8, 8, 3))
    write_tfds(tmp_path, [source.encoded(0), source.encoded(1)], labels=False)
    shapes = tfds_split.TfdsSource("shapes", "train", str(tmp_path))
    assert shapes.labels(np.arange(2)).tolist() == [-1, -1]

  def test_reads_mock_data(self):
    with tfds.testing.mock_data(num_examples=5):
      source = tfds_split.TfdsSource("mnist", "train")
      images = source.images(np.arange(5), 28)
      labels = source.labels(np.arange(5))
      encoded = source.encoded(3)
    assert len(source) == 5
    assert images.shape == (5, 28, 28, 3)
    np.testing.assert_array_equal(images, np.repeat(images[..., :1], 3, -1))
    assert set(labels) <= set(range(10))
    np.testing.assert_array_equal(decode(encoded), images[3, ..., 0])

  def test_a_damaged_sample_is_named(self, tmp_path):
    write_tfds(tmp_path, [b"no image"])
    source = tfds_split.TfdsSource("shapes", "train", str(tmp_path))
    with pytest.raises(
      errors.EcosError, match=r"tfds:shapes:train\[0\] cannot"
    ):
      source.images(np.array([0]), 8)

  def test_refuses_what_tfds_does_not_have(self, tmp_path):
    with pytest.raises(
      errors.EcosError, match=r"open tfds:nosuch:train: .*not"
    ):
      tfds_split.TfdsSource("nosuch", "train", str(tmp_path))
    write_tfds(
      tmp_path, [pools.ArraySource("a", made_images.random(1, 8, 8)).encoded(0)]
    )
    with pytest.raises(errors.EcosError, match=r"'test'.*\['train'\]"):
      tfds_split.TfdsSource("shapes", "test", str(tmp_path))

  def test_refuses_a_dataset_without_images(self, tmp_path):
    data = pools.ArraySource("a", made_images.random(1, 8, 8)).encoded(0)
    write_tfds(tmp_path, [data], feature="picture")
    with pytest.raises(errors.EcosError, match="image"):
      tfds_split.TfdsSource("shapes", "train", str(tmp_path))


class TestOpenSource:
  def test_a_part_of_a_folder(self, tmp_path):
    for i in range(20):
      made_images.save(tmp_path / f"{i}.png", made_images.random(4, 4, 3))
    parts = [
      pools.open_source(f"folder:{tmp_path}[{cut}]")
      for cut in ("0%:50%", "50%:100%")
    ]
    assert sum(map(len, parts)) == 20
    assert parts[0].name == f"{tmp_path.name}[0%:50%]"

  @pytest.mark.parametrize("prefix", ["", "folder:"])
  def test_folder(self, tmp_path, prefix):
    made_images.save(tmp_path / "x.png", made_images.random(4, 4, 3))
    source = pools.open_source(f"{prefix}{tmp_path}")
    assert isinstance(source, folder.FolderSource)

  @pytest.mark.parametrize("prefix", ["", "images:"])
  def test_npy_is_mapped_and_hashed_once(self, tmp_path, monkeypatch, prefix):
    images = made_images.random(3, 8, 8, 3)
    file = tmp_path / "cats.npy"
    np.save(file, images)
    source = pools.open_source(f"{prefix}{file}")
    assert (source.name, len(source)) == ("cats", 3)
    np.testing.assert_array_equal(source.images(np.arange(3), 8), images)
    assert source.labels(np.arange(3)).tolist() == [-1] * 3
    digest = source.digest
    kept = tmp_path / "kept.json"
    for time in (1, 2):
      os.utime(file, (time, time))
      assert pools.open_source(str(file), listing=kept).digest == digest
      # The file is not read again.
      with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert pools.open_source(str(file), listing=kept).digest == digest
    images[0, 0, 0, 0] ^= 1
    np.save(file, images)
    assert pools.open_source(str(file), listing=kept).digest != digest

  @pytest.mark.parametrize("labels", [{}, {"labels": np.array([4, 5, 6])}])
  def test_npz(self, tmp_path, labels):
    images = made_images.random(3, 8, 8)
    np.savez(tmp_path / "cats.npz", images=images, **labels)
    source = pools.open_source(str(tmp_path / "cats.npz"))
    np.testing.assert_array_equal(
      source.images(np.arange(3), 8)[..., 1], images
    )
    expected = [4, 5, 6] if labels else [-1] * 3
    assert source.labels(np.arange(3)).tolist() == expected

  def test_tfds(self, monkeypatch):
    calls = []
    monkeypatch.setattr(
      tfds_split, "TfdsSource", lambda *args: calls.append(args)
    )
    pools.open_source("tfds:mnist:train", "there", ["a"])
    assert calls == [("mnist", "train", "there", ["a"], "white")]

  @pytest.mark.parametrize("name", ["x.npy", "x.npz"])
  def test_refuses_missing_and_damaged_files(self, tmp_path, name):
    path = tmp_path / name
    with pytest.raises(errors.EcosError, match=f"cannot read .*{name}"):
      pools.open_source(f"images:{path}")
    images = made_images.random(3, 8, 8)
    if name.endswith("y"):
      np.save(path, images)
    else:
      np.savez_compressed(path, images=images)
    data = path.read_bytes()
    for damaged in (b"", b"no array", data[:40], data[:-20]):
      path.write_bytes(damaged)
      with pytest.raises(errors.EcosError, match=f"cannot read .*{name}"):
        pools.open_source(str(path))

  def test_refuses_pickles(self, tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(errors.EcosError, match="cannot read"):
      pools.open_source(str(tmp_path / "x.npy"))

  def test_refuses_other_arrays(self, tmp_path):
    np.savez(tmp_path / "x.npz", pictures=made_images.random(3, 8, 8))
    with pytest.raises(errors.EcosError, match="no array 'images', but pict"):
      pools.open_source(str(tmp_path / "x.npz"))
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8)))
    with pytest.raises(errors.EcosError, match="must be uint8"):
      pools.open_source(str(tmp_path / "x.npy"))


class TestPool:
  @given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.data())
  def test_equals_the_sources_one_after_the_other(self, lengths, data):
    if not sum(lengths):
      lengths.append(1)
    images = made_images.random(sum(lengths), 2, 2, 3)
    labels = np.arange(len(images))
    offsets = np.cumsum([0, *lengths])
    pool = pools.Pool(
      [
        pools.ArraySource(f"s{i}", images[a:b], labels[a:b])
        for i, (a, b) in enumerate(itertools.pairwise(offsets))
      ]
    )
    positions = np.repeat(np.arange(len(lengths)), lengths)
    indices = np.array(
      data.draw(st.lists(st.integers(0, len(images) - 1))), np.int64
    )
    assert len(pool) == len(images)
    np.testing.assert_array_equal(pool.images(indices, 2), images[indices])
    np.testing.assert_array_equal(pool.labels(indices), labels[indices])
    source_of = pool.source_of(indices)
    assert source_of.dtype == np.int32
    np.testing.assert_array_equal(source_of, positions[indices])
    for index in indices[:3]:
      np.testing.assert_array_equal(decode(pool.encoded(index)), images[index])

  def test_source_names(self):
    a, b = (
      pools.ArraySource(name, made_images.random(1, 2, 2)) for name in "ab"
    )
    assert pools.Pool([b, a]).source_names == ("b", "a")

  def test_digest_is_of_order_and_content(self):
    """And not of names: the same data may lie elsewhere."""

    def source(name, seed):
      return pools.ArraySource(name, made_images.random(2, 2, 2, seed=seed))

    digest = pools.Pool([source("a", 0), source("b", 1)]).digest
    assert pools.Pool([source("a", 0), source("c", 1)]).digest == digest
    for other in (
      [source("b", 1), source("a", 0)],
      [source("a", 0), source("b", 2)],
      [source("a", 0)],
    ):
      assert pools.Pool(other).digest != digest

  @pytest.mark.parametrize("index", [-1, 2])
  def test_refuses_an_index_outside(self, index):
    pool = pools.Pool([pools.ArraySource("a", made_images.random(2, 2, 2))])
    for read in (pool.labels, pool.source_of, lambda i: pool.images(i, 2)):
      with pytest.raises(IndexError, match=r"\[0, 2\)"):
        read(np.array([0, index]))

  def test_refuses_no_samples(self):
    empty = pools.ArraySource("a", made_images.random(0, 2, 2))
    for sources in ([], [empty]):
      with pytest.raises(errors.EcosError, match="the pool is empty"):
        pools.Pool(sources)

  def test_two_sources_of_one_name_get_a_number(self):
    sources = [
      pools.ArraySource(name, made_images.random(1, 2, 2, seed=seed))
      for seed, name in enumerate(("train", "b", "train", "train"))
    ]
    names = pools.Pool(sources).source_names
    assert names == ("train", "b", "train:2", "train:3")
    with pytest.raises(errors.EcosError, match="source train is twice"):
      pools.Pool([*sources, sources[2]])

  def test_counts_the_samples_of_each_class(self):
    labels = [np.array([0, 2, 2, -1]), np.array([2, 2, 2, 1], np.uint8)]
    pool = pools.Pool(
      [
        pools.ArraySource(str(i), made_images.random(4, 2, 2, seed=i), own)
        for i, own in enumerate(labels)
      ]
    )
    assert pool.class_sizes(4) == [1, 1, 5, 0]
    with pytest.raises(errors.EcosError, match="label in 0 is 2"):
      pool.class_sizes(2)


def test_the_client_needs_no_heavy_package(tmp_path: Path):
  script = """
import sys
import numpy as np
from ecos_jax.data import pools
pools.open_source(sys.argv[1]).images(np.array([0]), 8)
heavy = {"tensorflow_datasets", "tensorflow", "grain", "orbax", "jax"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
  made_images.save(tmp_path / "x.png", made_images.random(9, 9, 3))
  command = [sys.executable, "-c", script, str(tmp_path)]
  subprocess.run(command, check=True)

"""Endless shuffled batches for training, whose position can be saved.

A batch depends on the seed and the step only, so the position is one number.
Grain counts the steps, reads ahead, and returns to a saved position. One
element of grain is a whole batch, read by all of its indices at once: to
shuffle and batch single samples in grain costs 70 microseconds a sample.

A batch is a dict of arrays: `image` uint8 [b, s, s, 3], `label` int64 [b] (-1
is unknown), and what else the samples have.
"""

from collections.abc import Callable
import functools
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np
from PIL import Image

from ecos_jax.data import images as image_files
from ecos_jax.data import pools
from ecos_jax.data import proxy

_STEPS = 1 << 48  # endless
# One thread, since the training step needs the interpreter's lock too.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


class Samples(Protocol):
  """Samples that are read by index, many at once."""

  def __len__(self) -> int:
    """Returns the number of samples."""
    ...

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the samples at `indices` [b] as arrays of first axis b."""
    ...


class Arrays:
  """Samples in memory."""

  def __init__(self, arrays: dict[str, np.ndarray]):
    """Takes arrays of the same first axis."""
    self._arrays = arrays

  def __len__(self) -> int:
    """Returns the number of samples."""
    return len(self._arrays["image"])

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the samples at `indices` [b]."""
    return {name: array[indices] for name, array in self._arrays.items()}


class PoolPart:
  """Some samples of a pool: `image` and `label`."""

  def __init__(self, pool: pools.Pool, indices: np.ndarray, size: int):
    """Reads nothing yet.

    Args:
      pool: The pool.
      indices: [n] int64, pool indices of the samples.
      size: Height and width of the images.
    """
    self._pool = pool
    self._indices = indices
    self._size = size

  def __len__(self) -> int:
    """Returns the number of samples."""
    return len(self._indices)

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the samples at positions `indices` [b] of the part."""
    chosen = self._indices[indices]
    return {
      "image": self._pool.images(chosen, self._size),
      "label": self._pool.labels(chosen),
    }


class Beside:
  """The samples of a source, and other arrays beside them."""

  def __init__(self, source: Samples, **arrays: np.ndarray):
    """Wraps a source.

    Args:
      source: The samples.
      **arrays: [n, ...], added to its batches by name.
    """
    self._source = source
    self._arrays = arrays

  def __len__(self) -> int:
    """Returns the number of samples."""
    return len(self._source)

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the samples at `indices` [b]."""
    arrays = {name: array[indices] for name, array in self._arrays.items()}
    return self._source.batch(indices) | arrays


class Unlabelled(Beside):
  """The images of a source without its labels, which nobody may see."""

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the samples at `indices` [b], without labels."""
    batch = super().batch(indices)
    return {name: array for name, array in batch.items() if name != "label"}


class _Proxy:
  """Samples of a proxy dataset, decoded at each access."""

  def __init__(self, directory: Path, size: int):
    self._directory = directory
    self._data_source = proxy.open_proxy(directory)
    self._size = size

  def __len__(self) -> int:
    return len(self._data_source)

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    with proxy.damage_named(self._directory):
      items = self._data_source.__getitems__([int(i) for i in indices])
    images = [Image.fromarray(item["image"]) for item in items]
    return {
      "image": image_files.squares(
        images.__getitem__, np.arange(len(images)), self._size
      ),
      "label": np.array([item["label"] for item in items], np.int64),
      "index": np.array([item["index"] for item in items], np.int64),
      "cluster": np.array([item["cluster"] for item in items], np.int32),
    }


def proxy_source(
  directory: str | Path, size: int, memory_budget: int = 1 << 30
) -> Samples:
  """Returns a proxy's samples: image, label, cluster, pool index.

  Args:
    directory: The dataset that `proxy.write` wrote.
    size: Height and width of the images.
    memory_budget: Bytes. Images that fit are decoded once and kept; otherwise
      they are decoded at each access.

  Raises:
    EcosError: There is no readable dataset.
  """
  source = _Proxy(Path(directory), size)
  if len(source) * size * size * 3 > memory_budget:
    return source
  return Arrays(source.batch(np.arange(len(source))))


def batches(
  source: Samples,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  place: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
) -> grain.DatasetIterator[Any]:
  """Returns an endless iterator over batches, in a new order each epoch.

  `get_state()` returns a dict that JSON can hold; `set_state` takes it, and the
  iterator continues with the batch that would have come next. Order and state
  do not depend on the number of processes.

  Args:
    source: One sample or more; a batch may hold more than one epoch.
    batch_size: Samples in a batch, of all processes together.
    seed: Determines the order.
    process_index: Which slice of each batch to return.
    process_count: The number of slices; must divide `batch_size`.
    place: Called with each batch in the thread that reads ahead, to put it on
      the devices, for instance.
  """
  samples = len(source)
  size = batch_size // process_count
  own = np.arange(process_index * size, (process_index + 1) * size)

  @functools.lru_cache(maxsize=2)
  def order(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(samples)

  def fetch(step: int) -> dict[str, np.ndarray]:
    epochs, places = np.divmod(step * batch_size + own, samples)
    indices = [order(int(e))[places[epochs == e]] for e in np.unique(epochs)]
    return place(source.batch(np.concatenate(indices)))

  return iter(grain.MapDataset.range(_STEPS).map(fetch).to_iter_dataset(_READ))

"""The proxy dataset: the chosen samples of the pool, as a TFDS dataset.

Labellers and training read it with TFDS and without TensorFlow: the records are
in array_record files, and hold image files rather than arrays. RGB files (PNG,
JPEG or WebP) are copied byte for byte from the pool; others become RGB PNG
files, so that every reader gets [h, w, 3].

Beside it, `index.csv` lists the samples for people and tools that label.

A pool of features has no images to copy: its proxy is an index, a .npy file
that `numpy.load` and `pandas.DataFrame` read as a table.
"""

from collections.abc import Iterator
import contextlib
import csv
import io
import json
from pathlib import Path
import shutil
import tempfile
from typing import Any

import numpy as np
import tqdm

from ecos_jax import errors
from ecos_jax.data import features
from ecos_jax.data import images as image_files
from ecos_jax.data import pools

CSV_COLUMNS = ("rank", "index", "source", "key", "cluster", "weight", "score")
_SPLIT = "train"
_SHARD_EXAMPLES = 1 << 14
_CHUNK_EXAMPLES = 256  # TFDS writes the metadata after each chunk


def _rgb_file(data: bytes, where: str) -> bytes:
  if image_files.opened(data).mode == "RGB":
    return data
  return image_files.png(image_files.rgb(image_files.decode(data, where)))


def write(
  directory: Path,
  pool: pools.Pool,
  indices: np.ndarray,
  clusters: np.ndarray,
  labels: np.ndarray,
) -> None:
  """Writes the dataset completely or not at all; replaces an existing one.

  Args:
    directory: The folder of the dataset.
    pool: The pool.
    indices: [B] int64, pool indices of the samples.
    clusters: [B] int32, their clusters.
    labels: [B] int64, their classes, -1 where unknown.

  Raises:
    EcosError: B is 0, the lengths differ, or an image cannot be read.
  """
  # Imported here, as in open_proxy: it takes seconds.
  import tensorflow_datasets as tfds

  _check_size(directory, indices)
  if not len(indices) == len(clusters) == len(labels):
    raise errors.EcosError(
      f"the proxy needs one cluster and label per index, got {len(indices)} "
      f"indices, {len(clusters)} clusters, {len(labels)} labels"
    )
  schema = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.Scalar(np.int64),
      "index": tfds.features.Scalar(np.int64),
      "source": tfds.features.Text(),
      "cluster": tfds.features.Scalar(np.int32),
    }
  )
  sources = pool.source_of(indices)

  def example(row: int) -> dict[str, Any]:
    index = int(indices[row])
    data = _rgb_file(pool.encoded(index), f"sample {index} of the pool")
    return {
      "image": io.BytesIO(data),
      "label": int(labels[row]),
      "index": index,
      "source": pool.source_names[sources[row]],
      "cluster": int(clusters[row]),
    }

  directory = directory.absolute()
  directory.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f".{directory.name}.", dir=directory.parent
  ) as parent:
    temporary = Path(parent) / directory.name
    temporary.mkdir()
    info = tfds.core.DatasetInfo(
      builder=tfds.core.DatasetIdentity(
        name="proxy",
        version="1.0.0",
        data_dir=str(temporary),
        module_name=__name__,
      ),
      features=schema,
      description="Samples of a public pool, chosen by ecos_jax.",
    )
    writer = tfds.core.SequentialWriter(
      info, _SHARD_EXAMPLES, file_format="array_record"
    )
    writer.initialize_splits([_SPLIT])
    with tqdm.tqdm(total=len(indices), desc="proxy", disable=None) as bar:
      for start in range(0, len(indices), _CHUNK_EXAMPLES):
        rows = range(start, min(start + _CHUNK_EXAMPLES, len(indices)))
        writer.add_examples({_SPLIT: [example(row) for row in rows]})
        bar.update(len(rows))
    writer.close_all()
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def write_index(
  path: Path,
  pool: pools.Pool,
  indices: np.ndarray,
  clusters: np.ndarray,
  weights: np.ndarray,
) -> None:
  """Writes the index of a proxy, and the metadata of its samples beside it.

  The index is a structured array with the fields `index` (in the pool),
  `source` (position among the pool's sources), `row` (in the source), `cluster`
  and `weight`. Line i of `metadata.jsonl` is the source's metadata of record i;
  there is no such file if no source has metadata.

  Args:
    path: The .npy file.
    pool: A pool of features.
    indices: [B] int64, pool indices of the samples.
    clusters: [B] int32, their clusters.
    weights: [B] float32, how many samples of the client each stands for.

  Raises:
    EcosError: B is 0, or the metadata are damaged.
  """
  _check_size(path, indices)
  table = np.empty(
    len(indices),
    [
      *(("index", "<i8"), ("source", "<i4"), ("row", "<i8")),
      *(("cluster", "<i4"), ("weight", "<f4")),
    ],
  )
  table["index"], table["cluster"] = indices, clusters
  table["weight"], table["source"] = weights, pool.source_of(indices)
  metadata: list[dict] = [{}] * len(indices)
  for source, own, rows in pool.by_source(indices):
    table["row"][own] = rows
    assert isinstance(source, features.FeatureSource)
    for place, row in zip(own, source.metadata(rows) or (), strict=False):
      metadata[place] = row
  np.save(path, table)
  if any(metadata):
    lines = "".join(f"{json.dumps(row, default=str)}\n" for row in metadata)
    path.with_name("metadata.jsonl").write_text(lines, encoding="utf-8")


def write_csv(
  path: Path,
  pool: pools.Pool,
  indices: np.ndarray,
  clusters: np.ndarray,
  weights: np.ndarray,
  *,
  ranks: np.ndarray | None = None,
  scores: np.ndarray | None = None,
) -> None:
  """Writes the list of a proxy's samples, for people and tools that label.

  The columns are `rank`, `index` (in the pool), `source`, `key` (what the
  sample is called there: its path, or its row), `cluster`, `weight` and
  `score`. What is unknown is empty. The lines are in the order of the ranks.

  Args:
    path: The .csv file.
    pool: The pool.
    indices: int64 [B], pool indices of the samples.
    clusters: int32 [B], their clusters, -1 for none.
    weights: float32 [B], as in `write_index`.
    ranks: int64 [B], from 0: the samples of rank below b are the proxy of
      budget b. None: there is no such order.
    scores: int64 [R], the noisy votes of each cluster; None if there are none.
  """
  keys, sources = pool.keys(indices), pool.source_of(indices)
  order = np.arange(len(indices)) if ranks is None else np.argsort(ranks)
  with path.open("w", newline="", encoding="utf-8") as file:
    lines = csv.writer(file)
    lines.writerow(CSV_COLUMNS)
    for i in order.tolist():
      cluster = int(clusters[i])
      known = cluster >= 0
      lines.writerow(
        [
          *("" if ranks is None else int(ranks[i]), int(indices[i])),
          *(pool.source_names[sources[i]], keys[i]),
          *(cluster if known else "", f"{weights[i]:.6g}"),
          int(scores[cluster]) if known and scores is not None else "",
        ]
      )


def _check_size(path: Path, indices: np.ndarray) -> None:
  if not len(indices):
    raise errors.EcosError(
      f"the proxy {path} would be empty: raise `sampling.budget` "
      "or lower `sampling.threshold`"
    )


def open_proxy(directory: Path) -> Any:
  """Returns the dataset as a TFDS data source, with `len` and random access.

  An item has `image` uint8 [h, w, 3], the integers `label`, `index` and
  `cluster`, and `source` as bytes.

  Args:
    directory: The folder that `write` wrote.

  Raises:
    EcosError: There is no readable dataset.
  """
  import tensorflow_datasets as tfds

  # TFDS's own decoder asks for OpenCV on stderr, and gives other pixels where
  # OpenCV is installed.
  @tfds.decode.make_decoder(output_dtype=np.uint8)
  def decode(data: bytes, feature: Any) -> np.ndarray:
    del feature
    return np.asarray(image_files.decode(data, str(directory)))

  with damage_named(directory):
    builder: Any = tfds.builder_from_directory(str(directory.absolute()))
    source = builder.as_data_source(_SPLIT, decoders={"image": decode()})
    source[0]
    return source


@contextlib.contextmanager
def damage_named(directory: Path) -> Iterator[None]:
  """Turns errors of a block that reads a dataset into an EcosError."""
  try:
    yield
  # TFDS and array_record have no common class of errors.
  except Exception as error:
    first_line = str(error).strip().partition("\n")[0]
    raise errors.EcosError(
      f"{directory} is not a readable proxy ({first_line})"
    ) from error

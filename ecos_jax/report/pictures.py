"""Thumbnails of the proxy and of clusters of the pool."""

import base64
import dataclasses
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from ecos_jax import errors
from ecos_jax import workdir
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import directions as directions_lib
from ecos_jax.config import spec as spec_lib
from ecos_jax.data import images as image_files
from ecos_jax.data import pools
from ecos_jax.data import problem
from ecos_jax.data import proxy as proxy_lib
from ecos_jax.pipeline import selection
from ecos_jax.report import collect
from ecos_jax.report import projection

_CLUSTERS = 6
_OF_A_CLUSTER = 12
_DIRECTIONS = 6
_OF_A_SIDE = 12
_OF_THE_PROXY = 60
_SIDE = 64
# Rows of the assignment among which members of clusters are searched.
_SCANNED = 1 << 20
_SEED = 1


class Picture(NamedTuple):
  """An image as a data URI, and what to call it."""

  uri: str
  title: str


class Cluster(NamedTuple):
  """Some samples of a cluster."""

  index: int
  pictures: list[Picture]


class Direction(NamedTuple):
  """A direction that the client voted on.

  Attributes:
    index: Its place among the p.
    vote: The client's noisy mean vote, about -1 to 1.
    pool: The pool's.
    noise: Standard deviation of the noise in the client's.
    low: Samples of the pool that lie farthest to the negative side.
    high: Those farthest to the positive side.
  """

  index: int
  vote: float
  pool: float
  noise: float
  low: list[Picture]
  high: list[Picture]


class Pictures(NamedTuple):
  """The images of a run.

  Attributes:
    most: The clusters with the highest scores, highest first.
    least: The clusters with the lowest scores, lowest first.
    directions: The directions on which client and pool differ most.
    proxy: Samples of the proxy, by source.
    away: Why the pool's images cannot be read; None if they can.
  """

  most: list[Cluster]
  least: list[Cluster]
  directions: list[Direction]
  proxy: list[Picture]
  away: str | None


def look(run: collect.Run) -> Pictures | None:
  """Returns the images of a run; None if it has no proxy of images.

  Raises:
    EcosError: The proxy is damaged.
  """
  dataset = run.path / "proxy" / selection.DATASET
  if run.chosen is None or (run.path / "proxy" / selection.INDEX).exists():
    return None
  random = np.random.default_rng(_SEED)
  with workdir.redo_named(dataset.parent):
    items = proxy_lib.open_proxy(dataset)
    if len(items) != len(run.chosen):
      raise errors.EcosError(
        f"{dataset} has {len(items)} samples for {len(run.chosen)} indices"
      )
    places = projection.sample(random, len(items), _OF_THE_PROXY)
    with proxy_lib.damage_named(dataset):
      shown = [_picture(item) for item in items.__getitems__(places.tolist())]
  shown.sort(key=lambda picture: picture.title)
  if run.clusters is None and run.votes is None:
    return Pictures([], [], [], shown, None)
  try:
    pool = _pool(run)
    most, least = _clusters(run, pool, random)
    directions = _directions(run, pool, random)
  except (errors.EcosError, OSError) as error:
    return Pictures([], [], [], shown, str(error))
  return Pictures(most, least, directions, shown, None)


def _clusters(
  run: collect.Run, pool: pools.Pool, random: np.random.Generator
) -> tuple[list[Cluster], list[Cluster]]:
  """Returns the clusters with the highest and with the lowest scores."""
  if run.clusters is None:
    return [], []
  order = np.argsort(-run.clusters.scores, kind="stable")
  order = order[(run.clusters.sizes > 0)[order]]
  most = order[:_CLUSTERS]
  least = order[len(most) :][-_CLUSTERS:][::-1]
  assignment = run.clusters.assignment
  rows = projection.sample(random, len(assignment), _SCANNED)
  labels = assignment[rows]

  def cluster(r: int) -> Cluster:
    """Returns a few random samples of a cluster."""
    own = rows[labels == r]
    own = own[projection.sample(random, len(own), _OF_A_CLUSTER)]
    return Cluster(r, _of_pool(pool, own))

  found = [cluster(r) for r in np.concatenate([most, least]).tolist()]
  return found[: len(most)], found[len(most) :]


def _directions(
  run: collect.Run, pool: pools.Pool, random: np.random.Generator
) -> list[Direction]:
  """Returns the directions on which the client differs most from the pool.

  Raises:
    EcosError: The bank is damaged.
  """
  if run.votes is None:
    return []
  axes, count, means, noise = run.votes
  folder = run.path / "bank"
  with workdir.redo_named(folder):
    bank = bank_lib.FeatureBank.open(folder, run.result("bank")["digest"])
  rows = projection.sample(random, bank.shape[0], projection.ROWS)
  features = bank.take(rows)
  places = np.asarray(directions_lib.coordinates(features, *axes))
  own = directions_lib.votes(features, *axes, count).mean(axis=0)
  found = []
  for j in np.argsort(-np.abs(means - own))[:_DIRECTIONS].tolist():
    order = rows[np.argsort(places[:, j], kind="stable")]
    extremes = order[:_OF_A_SIDE], order[::-1][:_OF_A_SIDE]
    low, high = (_of_pool(pool, side) for side in extremes)
    found.append(Direction(j, float(means[j]), float(own[j]), noise, low, high))
  return found


def _of_pool(pool: pools.Pool, indices: np.ndarray) -> list[Picture]:
  """Returns samples of the pool, each with the name of its source."""
  names = [pool.source_names[i] for i in pool.source_of(indices)]
  return list(map(Picture, map(_uri, pool.images(indices, _SIDE)), names))


def _pool(run: collect.Run) -> pools.Pool:
  """Returns the public pool; nothing of the client is read.

  Raises:
    EcosError: It cannot be read any more, or it has changed.
  """
  data = dataclasses.replace(run.config.data, client_data=None, test_data=None)
  specs = map(spec_lib.parse, data.sources)
  if any(isinstance(spec, spec_lib.Tfds | spec_lib.Hub) for spec in specs):
    raise errors.EcosError("its sources might have to be downloaded again")
  pool = problem.load(
    data, run.config.seed, remote=True, listings=run.path / "pool"
  ).pool
  if pool.digest != run.result("pool")["digest"]:
    raise errors.EcosError("its sources changed since the run")
  return pool


def _picture(item: dict) -> Picture:
  image = image_files.square(Image.fromarray(item["image"]), _SIDE)
  return Picture(_uri(image), item["source"].decode())


def _uri(image: np.ndarray) -> str:
  file = io.BytesIO()
  Image.fromarray(image).save(file, format="WEBP", quality=80, method=4)
  data = base64.b64encode(file.getvalue()).decode()
  return f"data:image/webp;base64,{data}"

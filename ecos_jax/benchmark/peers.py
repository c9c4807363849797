"""Other k-means libraries, with the settings that make them do the same work.

Whole rows, float32, all cores, no early stop, no subsample. All are optional;
each is imported in its own child process only.
"""

import contextlib
import importlib
import importlib.metadata
import io
import re
from typing import Any, Protocol
import warnings

import numpy as np

from ecos_jax.benchmark import machine

# Iterations to try until an inertia is reached: at most half too many.
_LADDER: tuple[int, ...] = (
  1,
  2,
  3,
  5,
  8,
  12,
  18,
  27,
  40,
  60,
  90,
  135,
  200,
  300,
)
_MAX_ITERATIONS = 300


class Peer(Protocol):
  """An implementation of k-means.

  Attributes:
    module: What it is imported as.
    efforts: Iterations to try until an inertia is reached.
  """

  module: str
  efforts: tuple[int, ...]

  def assign(self, features: np.ndarray, centroids: np.ndarray) -> Any:
    """Returns a function that returns the labels [n]."""

  def fit(
    self, features: np.ndarray, init: np.ndarray, iterations: int
  ) -> np.ndarray:
    """Returns the centroids after Lloyd iterations from `init`, [k, d].

    From a start of its own where it cannot be given one.
    """

  def cluster(
    self, features: np.ndarray, k: int, iterations: int
  ) -> np.ndarray:
    """Returns the centroids after iterations from its best start, [k, d]."""


class ScikitLearn:
  """scikit-learn's Lloyd, from its greedy k-means++."""

  module = "sklearn.cluster"
  efforts = _LADDER

  def _fitted(self, features, init, k, iterations, **options):
    kmeans = importlib.import_module(self.module).KMeans
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # That it has not converged.
      return kmeans(
        n_clusters=k,
        init=init,
        n_init=1,
        max_iter=iterations,
        random_state=1,
        algorithm="lloyd",
        **{"tol": 0, **options},
      ).fit(features)

  def assign(self, features, centroids):
    """See `Peer`."""
    # Each centroid is a cluster of its own; oneDAL wants more rows than k.
    rows = np.concatenate([centroids, centroids])
    model = self._fitted(rows, centroids, len(centroids), 1)
    return lambda: model.predict(features)

  def fit(self, features, init, iterations):
    """See `Peer`."""
    return self._fitted(features, init, len(init), iterations).cluster_centers_

  def cluster(self, features, k, iterations):
    """See `Peer`."""
    return self._fitted(features, "k-means++", k, iterations).cluster_centers_

  def traced(self, features, k) -> tuple[np.ndarray, list[float]]:
    """Returns converged centroids, and the inertia before each iteration."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
      model = self._fitted(
        features, "k-means++", k, _MAX_ITERATIONS, tol=1e-4, verbose=1
      )
    lines = re.findall(
      r"Iteration \d+, inertia ([\d.e+]+\d)", output.getvalue()
    )
    return model.cluster_centers_, [float(line) for line in lines]


class MiniBatch(ScikitLearn):
  """scikit-learn's MiniBatchKMeans with its defaults, one start."""

  efforts: tuple[int, ...] = (100,)

  def cluster(self, features, k, iterations):
    """See `Peer`; it also stops by itself."""
    mini = importlib.import_module(self.module).MiniBatchKMeans
    fitted = mini(
      n_clusters=k, n_init=1, max_iter=iterations, random_state=1
    ).fit(features)
    return fitted.cluster_centers_


class ScikitLearnIntelex(ScikitLearn):
  """Intel's implementation behind scikit-learn's interface."""

  module = "sklearnex.cluster"


class Faiss:
  """faiss on CPU, from its k-means++."""

  module = "faiss"
  efforts = _LADDER

  def assign(self, features, centroids):
    """See `Peer`."""
    faiss = importlib.import_module(self.module)
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    return lambda: index.search(features, 1)[1][:, 0]

  def _train(self, features, k, iterations, init=None, **options):
    faiss = importlib.import_module(self.module)
    kmeans = faiss.Kmeans(
      features.shape[1],
      k,
      niter=iterations,
      min_points_per_centroid=1,
      max_points_per_centroid=len(features),
      **options,
    )
    kmeans.train(features, init_centroids=init)
    return kmeans.centroids

  def fit(self, features, init, iterations):
    """See `Peer`."""
    return self._train(features, len(init), iterations, init)

  def cluster(self, features, k, iterations):
    """See `Peer`."""
    faiss = importlib.import_module(self.module)
    start = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    return self._train(features, k, iterations, init_method=start)


class FastKMeans:
  """fastkmeans: PyTorch on CPU, Triton on a GPU; from random rows only."""

  module = "fastkmeans"
  efforts = _LADDER

  def _model(self, d, k, iterations):
    fastkmeans = importlib.import_module(self.module)
    return fastkmeans.FastKMeans(d, k, niter=iterations, tol=-1.0, seed=1)

  def assign(self, features, centroids):
    """See `Peer`."""
    model = self._model(features.shape[1], len(centroids), 1)
    model.centroids = centroids
    return lambda: model.predict(features)

  def fit(self, features, init, iterations):
    """See `Peer`."""
    return self.cluster(features, len(init), iterations)

  def cluster(self, features, k, iterations):
    """See `Peer`."""
    model = self._model(features.shape[1], k, iterations)
    model.train(features)
    return model.centroids


class SuperKMeans:
  """superkmeans: prunes dimensions after part of the product."""

  module = "superkmeans"
  efforts = _LADDER

  def _model(self, d, k, iterations, n):
    return importlib.import_module(self.module).SuperKMeans(
      k,
      d,
      hierarchical=False,
      iters=iterations,
      sampling_fraction=1.0,
      max_points_per_cluster=n,
      n_threads=machine.cores(),
      early_termination=False,
      seed=1,
    )

  def assign(self, features, centroids):
    """See `Peer`."""
    n, d = features.shape
    model = self._model(d, len(centroids), 1, n)
    return lambda: model.assign(features, centroids)

  def fit(self, features, init, iterations):
    """See `Peer`."""
    return self.cluster(features, len(init), iterations)

  def cluster(self, features, k, iterations):
    """See `Peer`."""
    n, d = features.shape
    return self._model(d, k, iterations, n).train(features)


MINIBATCH = "scikit-learn-minibatch"
_PEERS = {
  "scikit-learn": ScikitLearn,
  "scikit-learn-intelex": ScikitLearnIntelex,
  "faiss-cpu": Faiss,
  "fastkmeans": FastKMeans,
  "superkmeans": SuperKMeans,
  MINIBATCH: MiniBatch,
}
NAMES = tuple(_PEERS)


def installed(name: str) -> bool:
  """Returns whether a peer can be run."""
  try:
    importlib.metadata.version("scikit-learn" if name == MINIBATCH else name)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


def get(name: str) -> Peer:
  """Returns a peer by its name on PyPI."""
  return _PEERS[name]()

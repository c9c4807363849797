"""Other k-means libraries, with the settings that make them do the same work.

All rows, float32, all cores, no early stop, no subsample. Each is optional, and
imported in its own child process only.
"""

import contextlib
import importlib
import io
from pathlib import Path
import re
from typing import Any
import warnings

import numpy as np

from ecos_jax.benchmark import calls
from ecos_jax.benchmark import cases
from ecos_jax.benchmark import machine

# Iterations to try until an inertia is reached: at most half too many.
_LADDER = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300)
_MAX_ITERATIONS = 300


class ScikitLearn:
  """scikit-learn's Lloyd, from its greedy k-means++."""

  module = "sklearn.cluster"
  efforts: tuple[int, ...] = _LADDER

  def _fitted(self, features, k, iterations, init, **options):
    kmeans = importlib.import_module(self.module).KMeans
    options = {"tol": 0, "random_state": 1, "algorithm": "lloyd"} | options
    model = kmeans(k, init=init, n_init=1, max_iter=iterations, **options)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # That it has not converged.
      return model.fit(features)

  def assign(self, features, centroids):
    """See `calls.KMeans`."""
    # Each centroid is a cluster of its own; oneDAL wants more rows than k.
    rows = np.concatenate([centroids, centroids])
    model = self._fitted(rows, len(centroids), 1, centroids)
    return lambda: model.predict(features)

  def fit(self, features, k, iterations, init="k-means++"):
    """See `calls.KMeans`."""
    return self._fitted(features, k, iterations, init).cluster_centers_

  def traced(self, features, k) -> tuple[np.ndarray, list[float]]:
    """Returns converged centroids, and the inertia before each iteration."""
    options: dict[str, Any] = {"tol": 1e-4, "verbose": 1}
    with contextlib.redirect_stdout(io.StringIO()) as output:
      model = self._fitted(features, k, _MAX_ITERATIONS, "k-means++", **options)
    inertias = re.findall(
      r"Iteration \d+, inertia ([\d.e+]+\d)", output.getvalue()
    )
    return model.cluster_centers_, [float(inertia) for inertia in inertias]


class MiniBatch(ScikitLearn):
  """scikit-learn's MiniBatchKMeans with its defaults, one start."""

  efforts = (100,)

  def fit(self, features, k, iterations, init="k-means++"):
    """See `calls.KMeans`; it may stop earlier."""
    mini = importlib.import_module(self.module).MiniBatchKMeans
    model = mini(k, init=init, n_init=1, max_iter=iterations, random_state=1)
    return model.fit(features).cluster_centers_


class _ScikitLearnIntelex(ScikitLearn):
  """Intel's implementation behind scikit-learn's interface."""

  module = "sklearnex.cluster"


class _Faiss:
  """faiss on CPU, from its k-means++."""

  module = "faiss"
  efforts = _LADDER

  def assign(self, features, centroids):
    faiss = importlib.import_module(self.module)
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    return lambda: index.search(features, 1)[1][:, 0]

  def fit(self, features, k, iterations, init=None):
    faiss = importlib.import_module(self.module)
    kmeans = faiss.Kmeans(
      features.shape[1],
      k,
      niter=iterations,
      min_points_per_centroid=1,
      max_points_per_centroid=len(features),
      # Has no effect on centroids that are given.
      init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )
    kmeans.train(features, init_centroids=init)
    return kmeans.centroids


class _FastKMeans:
  """fastkmeans: PyTorch on CPU, Triton on a GPU; from random rows only."""

  module = "fastkmeans"
  efforts = _LADDER

  def _model(self, d, k, iterations):
    fastkmeans = importlib.import_module(self.module)
    return fastkmeans.FastKMeans(d, k, niter=iterations, tol=-1.0, seed=1)

  def assign(self, features, centroids):
    model = self._model(features.shape[1], len(centroids), 1)
    model.centroids = centroids
    return lambda: model.predict(features)

  def fit(self, features, k, iterations, init=None):
    del init
    model = self._model(features.shape[1], k, iterations)
    model.train(features)
    return model.centroids


class _SuperKMeans:
  """superkmeans: prunes dimensions after part of the product; random rows."""

  module = "superkmeans"
  efforts = _LADDER

  def _model(self, features, k, iterations):
    n, d = features.shape
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
    model = self._model(features, len(centroids), 1)
    return lambda: model.assign(features, centroids)

  def fit(self, features, k, iterations, init=None):
    del init
    return self._model(features, k, iterations).train(features)


_PEERS = {
  "scikit-learn": ScikitLearn,
  "scikit-learn-intelex": _ScikitLearnIntelex,
  "faiss-cpu": _Faiss,
  "fastkmeans": _FastKMeans,
  "superkmeans": _SuperKMeans,
  cases.MINIBATCH: MiniBatch,
}


def installed(name: str) -> bool:
  """Returns whether a library can be run, by its name on PyPI."""
  name = "scikit-learn" if name == cases.MINIBATCH else name
  return name in machine.versions([name])


def load(name: str) -> None:
  """Imports a library."""
  importlib.import_module(_PEERS[name].module)


def call(
  name: str, case: cases.Case, options: cases.Options, folder: Path
) -> calls.Call:
  """Returns the call of a library; see `ours.call`."""
  del options
  library: Any = _PEERS[name]()
  features = np.load(folder / "features.npy")
  return calls.kmeans(library, name, case, features, folder)

"""One round of questions against two, at equal epsilon and equal bytes.

The question: would a first, coarse query on a part of epsilon, and a second one
whose centroids split only the covered clusters, find more of the client's
domain than one query with as many centroids as both together? This simulates
both on Digits, with the package's own codebooks, noise, estimate and sampler
(the noise is seeded), and writes the table and the figure of docs/sampling.md:

  python docs/rounds.py --data=DIR --out=docs/rounds \
    --clients=usps,optdigits,mnist_m --seeds=1,2

Two rounds are favoured where that is easy: headers are free, and `free` even
has the exact coverage of the first round for nothing.
"""

import itertools
import json
from pathlib import Path
from typing import NamedTuple

from absl import app
from absl import flags
from absl import logging
import jax
import matplotlib.pyplot as plt
import numpy as np

from ecos_jax import config
from ecos_jax.client import coverage
from ecos_jax.cloud import choose
from ecos_jax.cloud import codebook
from ecos_jax.cloud import scores as scores_lib
from ecos_jax.clustering import assign
from ecos_jax.clustering import kmeans
from ecos_jax.data import digits
from ecos_jax.encoders import registry
from ecos_jax.privacy import accounting

_DATA = flags.DEFINE_string("data", None, "Folder of Digits.", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds.")
_CLIENTS = flags.DEFINE_list("clients", [*digits.DOMAINS], "Clients.")
_OUT = flags.DEFINE_string("out", "rounds", "Where to, without a suffix.")

_SIZE, _GAMMA, _DELTA, _BUDGET = 100, 0.8, 1e-5, 1000
# Centroids of the first round, and its part of epsilon (as 1 / sigma^2).
_ROUNDS = ((10, 0.2), (20, 0.2), (20, 0.35), (40, 0.35))
_OPTIONS = config.Sampling()


class _Cell(NamedTuple):
  """A client before a pool: features, labels, and which rows are its domain."""

  bank: "_Bank"
  own: np.ndarray
  client: np.ndarray
  test: np.ndarray


class _Bank:
  """Features in memory, as a bank."""

  def __init__(self, features: np.ndarray):
    self.features = features
    self.shape = features.shape

  def take(self, rows: np.ndarray) -> np.ndarray:
    return self.features[rows]


def _cell(client: str, seed: int) -> _Cell:
  benchmark = digits.load(config.Data(dir=_DATA.value, client=client), seed)
  encoder = registry.get(config.Encoder().name)

  def encoded(source):
    images = source.images(np.arange(len(source)), encoder.image_size)
    return registry.encode(encoder, images)

  pool = benchmark.pool
  features = np.concatenate([encoded(source) for source in pool.sources])
  own = pool.source_of(np.arange(len(pool))) == benchmark.client_source
  return _Cell(
    _Bank(features), own, encoded(benchmark.client), encoded(benchmark.test)
  )


def _noised(votes: np.ndarray, sigma: float, random) -> np.ndarray:
  x, log_mass = accounting.log_noise(sigma)
  return votes + random.choice(x, votes.shape, p=np.exp(log_mass))


def _scores(cell: _Cell, centroids: np.ndarray, sigma: float, random):
  """Returns the noised coverage of a Poisson subsample."""
  taken = cell.client[random.random(len(cell.client)) < _GAMMA]
  return _noised(coverage.coverage(taken, centroids), sigma, random)


def _fit(features: np.ndarray, size: int, seed: int):
  """Returns centroids, the assignment and the sizes."""
  centroids = kmeans.fit(features, size, jax.random.key(seed)).centroids
  labels = np.asarray(assign.assign(features, centroids).labels)
  return centroids, labels, np.bincount(labels, minlength=size)


def _share(cell, rows, centroids, labels, sizes, scores, sigma, seed):
  """Returns the share of the client's domain and the Frechet distance."""
  choice = choose.samples(
    _Bank(cell.bank.features[rows]),
    codebook.Codebook(centroids, sizes, labels.astype(np.int32)),
    scores,
    sigma,
    _OPTIONS,
    jax.random.key(seed),
  )
  chosen = rows[choice.by_cluster().indices]
  return float(cell.own[chosen].mean()), _frechet(
    cell.bank.features[chosen], cell.test
  )


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the squared Frechet distance of two Gaussians like a and b."""
  both = np.cov(a.T) @ np.cov(b.T)
  root = np.sqrt(np.maximum(np.linalg.eigvals(both).real, 0)).sum()
  gap = np.sum((a.mean(0) - b.mean(0)) ** 2)
  return float(gap + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * root)


def _run(cell: _Cell, client: str, seed: int, sigma: float) -> list[dict]:
  """Returns what every way of asking gives for one client."""
  random = np.random.default_rng([seed, round(sigma)])
  every = np.arange(len(cell.own))
  rows = []

  def note(name, pool, *result):
    share, frechet = _share(cell, *result, seed)
    rows.append(
      {
        **{"client": client, "seed": seed, "sigma": sigma, "rounds": name},
        **{"pool": pool, "share": share, "frechet": frechet},
      }
    )

  for size in (25, 50, _SIZE, 2 * _SIZE):
    book = _fit(cell.bank.features, size, seed)
    scores = _scores(cell, book[0], sigma, random)
    note(f"one, R = {size}", 1.0, every, *book, scores, sigma)
  for first, part in (*_ROUNDS, *((size, 0.0) for size in (10, 20, 40))):
    centroids, labels, sizes = _fit(cell.bank.features, first, seed)
    if part:
      noise, noise_2 = accounting.split(
        sigma, part, _GAMMA, _DELTA, config.Relation.ADD_REMOVE.value
      )
      scores = _scores(cell, centroids, noise, random)
      votes = scores_lib.posterior_mean(scores, sizes, noise)
      name = f"two, R = {first} + {_SIZE - first}, part {part:g}"
    else:
      noise_2 = sigma
      votes = coverage.coverage(cell.client, centroids)
      name = f"two, R = {first} (free) + {_SIZE - first}"
    covered = scores_lib.covered(votes, sizes, _SIZE - first)
    left = np.flatnonzero(covered[labels])
    book = _fit(cell.bank.features[left], _SIZE - first, seed)
    scores = _scores(cell, book[0], noise_2, random)
    note(name, len(left) / len(labels), left, *book, scores, noise_2)
  return rows


def _plot(table: dict, path: Path) -> None:
  figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), sharey=True)
  for axis, sigma in zip(axes, sorted({s for s, _ in table}), strict=True):
    names = [name for s, name in table if s == sigma]
    means = [table[sigma, name]["share"] for name in names]
    colours = ["tab:blue" if n.startswith("one") else "tab:red" for n in names]
    axis.barh(names[::-1], means[::-1], color=colours[::-1])
    axis.set_title(f"sigma {sigma:g} in one round")
    axis.set_xlabel("share of the client's domain %")
  figure.tight_layout()
  figure.savefig(path, dpi=100)


def main(argv: list[str]) -> None:
  """Runs every cell and writes OUT.json, OUT.md and OUT.png."""
  del argv
  out = Path(_OUT.value)
  rows = []
  for client, seed in itertools.product(_CLIENTS.value, _SEEDS.value):
    cell = _cell(client, int(seed))
    for sigma in (10.0, 25.0):
      rows += _run(cell, client, int(seed), sigma)
    logging.info("%s, seed %s: done", client, seed)
  table = {}
  lines = [
    "| sigma | rounds | rows of the pool left % | share % | Frechet |",
    "|---|---|---|---|---|",
  ]
  for sigma, name in dict.fromkeys((r["sigma"], r["rounds"]) for r in rows):
    same = [r for r in rows if (r["sigma"], r["rounds"]) == (sigma, name)]
    # Clients first, so that the deviation is that of the seeds.
    means = {
      field: np.array(
        [
          np.mean([r[field] for r in same if r["seed"] == seed])
          for seed in map(int, _SEEDS.value)
        ]
      )
      for field in ("pool", "share", "frechet")
    }
    table[sigma, name] = {"share": 100 * means["share"].mean()}
    share = 100 * means["share"]
    lines.append(
      f"| {sigma:g} | {name} | {100 * means['pool'].mean():.0f} | "
      f"{share.mean():.1f} ± {share.std(ddof=1):.1f} | "
      f"{means['frechet'].mean():.4f} |"
    )
  out.with_suffix(".json").write_text(json.dumps(rows, indent=1))
  out.with_suffix(".md").write_text("\n".join(lines) + "\n")
  _plot(table, out.with_suffix(".png"))


if __name__ == "__main__":
  app.run(main)

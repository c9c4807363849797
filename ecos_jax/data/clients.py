"""Several simulated clients: a benchmark's private samples, divided among them.

Each client draws its own mixture of classes and domains from a Dirichlet
distribution, and then samples by it (Hsu, Qi and Brown, arXiv 1909.06335). So
all have the same number of samples, and none has a sample of another.
"""

import numpy as np
from scipy import special

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.data import pools


def divide(
  problem: pools.Problem, data: config.Data, seed: int
) -> pools.Problem:
  """Returns a problem whose private samples belong to `data.clients` clients.

  Args:
    problem: A benchmark with one client.
    data: `clients`, `alpha` and `client_images`.
    seed: Draws who gets what.

  Raises:
    EcosError: There are not enough samples.
  """
  source, n = problem.client, data.clients
  if source is None or (n == 1 and not data.client_images):
    return problem
  size = data.client_images or len(source) // n
  if not 0 < n * size <= len(source):
    raise errors.EcosError(
      f"`data.clients`={n} with `data.client_images`={data.client_images} need "
      f"{max(n * size, n):,} samples, and {data.client} has {len(source):,}"
    )
  rng = np.random.default_rng([seed, n, size, *b"clients"])
  domains = problem.domains
  own = None if domains is None else domains[0]
  owners = dirichlet(
    cells(problem)[0], n, size, data.alpha, rng, own, data.domain_alpha
  )
  rows = np.argsort(owners, kind="stable")[-n * size :]
  owners = owners[rows]
  drawn = files.digest(rows.astype("<i8").data)
  part = pools.Part(source, rows, f"{n} clients {drawn}")
  if domains is not None:
    domains = domains[0][rows], domains[1]
  return problem._replace(client=part, owners=owners, domains=domains)


def cells(problem: pools.Problem) -> tuple[np.ndarray, np.ndarray]:
  """Returns one number for class and domain of each private and test sample.

  Returns:
    int64 [n] and [m]: class + classes * domain.
  """
  found = []
  for i, source in enumerate((problem.client, problem.test)):
    assert source is not None  # a benchmark has both
    labels = source.labels(np.arange(len(source)))
    if problem.domains is not None:
      labels = labels + problem.classes * problem.domains[i]
    found.append(labels)
  return found[0], found[1]


def dirichlet(
  cells: np.ndarray,
  clients: int,
  size: int,
  alpha: float,
  rng: np.random.Generator,
  domains: np.ndarray | None = None,
  domain_alpha: float | None = None,
) -> np.ndarray:
  """Returns who gets each sample, int64 [n]; -1: nobody.

  Client i gets `size` samples. For each it draws a cell from its own
  distribution q_i ~ Dirichlet(alpha p), where p are the shares of the cells
  among all samples. Clients draw in turns; empty cells are not drawn.

  Args:
    cells: int64 [n], the class or another group of each sample.
    clients: Number of clients.
    size: Samples of each; at most n in all.
    alpha: Concentration: many clients are alike if it is large.
    rng: Draws everything.
    domains: int64 [n], the domain of each sample; None: there is one.
    domain_alpha: Concentration of the clients' domains, if it is another one:
      then a client draws a domain by it, and a cell of the domain by `alpha`.
  """
  names, first, cell, counts = np.unique(
    cells, return_index=True, return_inverse=True, return_counts=True
  )
  # A cell's samples, in random order.
  order = rng.permutation(len(cells))
  left = [list(order[cell[order] == c]) for c in range(len(names))]
  logs = _log_gamma(alpha * counts / len(cells), clients, rng)
  if domains is not None and domain_alpha is not None:
    different, sizes = np.unique(domains, return_counts=True)
    drawn = _log_gamma(domain_alpha * sizes / len(cells), clients, rng)
    for i, domain in enumerate(different):
      inside = domains[first] == domain
      total = special.logsumexp(logs[:, inside], axis=1, keepdims=True)
      logs[:, inside] += drawn[:, [i]] - total
  owners = np.full(len(cells), -1)
  for _ in range(size):
    for client in rng.permutation(clients):
      there = np.array([bool(rows) for rows in left])
      weights = np.where(there, logs[client], -np.inf)
      weights = np.exp(weights - weights.max())
      drawn = rng.choice(len(names), p=weights / weights.sum())
      owners[left[drawn].pop()] = client
  return owners


def _log_gamma(
  shape: np.ndarray, clients: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns logarithms of gamma variates, [clients, len(shape)].

  A row is proportional to a draw from Dirichlet(shape), before the logarithm:
  with small shapes all gamma variates may underflow.
  """
  logs = np.log(rng.gamma(shape + 1, size=(clients, len(shape))))
  return logs + np.log(rng.random((clients, len(shape)))) / shape


def test_weights(problem: pools.Problem) -> np.ndarray:
  """Returns the weight of each test sample for each client, [clients, m] float.

  Each row sums to 1. It gives each class and domain the share that it has among
  the client's own samples; what the test set lacks is left out. If it lacks all
  of a client's, its samples count the same.
  """
  own, tested = cells(problem)
  owners = np.zeros(len(own), int) if problem.owners is None else problem.owners
  size = int(max(own.max(), tested.max())) + 1
  held = np.zeros((int(owners.max()) + 1, size))
  np.add.at(held, (owners, own), 1)
  available = np.bincount(tested, minlength=size)
  weights = (held / np.maximum(available, 1))[:, tested]
  weights[~weights.any(axis=1)] = 1
  return weights / weights.sum(axis=1, keepdims=True)

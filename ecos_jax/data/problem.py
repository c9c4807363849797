"""The data of a run: a pool, and in a simulation a client and test data.

They are the sources that the configuration names, or else a benchmark's.
"""

from collections.abc import Sequence
from pathlib import Path
import re

from ecos_jax import config
from ecos_jax import errors
from ecos_jax.config import spec as spec_lib
from ecos_jax.data import clients
from ecos_jax.data import digits
from ecos_jax.data import features
from ecos_jax.data import icons
from ecos_jax.data import pools
from ecos_jax.data.pools import Problem as Problem


def load(
  data: config.Data,
  seed: int,
  *,
  remote: bool = False,
  listings: Path | None = None,
) -> Problem:
  """Returns the data that a configuration names.

  Args:
    data: That part of the configuration.
    seed: Of a benchmark, as in `digits.load` and `icons.load`.
    remote: Whether the client is another machine: then its data and the test
      data are unknown here.
    listings: Folder where each `FolderSource` keeps its listing; None: no
      listing is kept.

  Raises:
    EcosError: A source cannot be read, or the sources do not fit together.
  """
  if not data.sources:
    benchmark = digits if data.benchmark is config.Benchmark.DIGITS else icons
    problem = benchmark.load(data, seed)
    if remote:
      return problem._replace(client=None, test=None, client_source=None)
    return clients.divide(problem, data, seed)
  pool = pools.Pool(
    [
      _opened(text, data, "sources", listings, f"source-{i}")
      for i, text in enumerate(data.sources)
    ]
  )
  client, test = (
    text and _opened(text, data, field, listings, field)
    for field, text in (
      ("client_data", data.client_data),
      ("test_data", data.test_data),
    )
  )
  if (
    pool.feature_sources
    and client
    and not isinstance(client, features.FeatureSource)
  ):
    raise errors.EcosError(
      f"`data.client_data`={data.client_data} must be features: the pool is"
    )
  return Problem(
    pool,
    client or None,
    test or None,
    _same_domain(pool.source_names, client.name) if client else None,
    len(data.classes) or pool.classes,
  )


def _opened(
  text: str, data: config.Data, field: str, listings: Path | None, name: str
) -> pools.Source:
  listing = listings / f"{name}.json" if listings is not None else None
  with errors.about(f"data.{field}", text):
    # Labels in arrays are numbers already, and features have none.
    numbered = isinstance(
      spec_lib.parse(text), spec_lib.Images | spec_lib.Features
    )
    classes = None if numbered else data.classes or None
    source = pools.open_source(text, data.dir, classes, listing)
  return pools.labelled(source) if data.labelled_only else source


def _same_domain(names: Sequence[str], client: str) -> int | None:
  """Returns the only source that is of the client's folder or dataset."""

  def domain(name: str) -> str:
    return re.split(r"[:\[]", name)[0]

  same = [i for i, name in enumerate(names) if domain(name) == domain(client)]
  return same[0] if len(same) == 1 else None

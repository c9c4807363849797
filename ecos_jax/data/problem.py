"""The data of a run: a pool, and in a simulation a client and test data.

They are the sources that the configuration names, or else a benchmark's.
"""

from collections.abc import Sequence
from pathlib import Path
import re

from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.config import classes as classes_lib
from ecos_jax.config import spec as spec_lib
from ecos_jax.data import clients
from ecos_jax.data import digits
from ecos_jax.data import features
from ecos_jax.data import folder
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
    data: The part `data` of the configuration.
    seed: Seed of a benchmark, as in `digits.load` and `icons.load`.
    remote: Whether the client is another machine: then its data and the test
      data are unknown here.
    listings: Folder where each source keeps what it found; None: nothing is
      kept.

  Raises:
    EcosError: A source cannot be read, or the sources do not fit together.
  """
  if not data.sources:
    benchmark = digits if data.benchmark is config.Benchmark.DIGITS else icons
    problem = benchmark.load(data, seed)
    if remote:
      return problem._replace(client=None, test=None, client_source=None)
    return clients.divide(problem, data, seed)
  names = classes_lib.named(data.classes)
  sources = [
    _opened(text, data, names, "sources", listings, f"source-{i}")
    for i, text in enumerate(data.sources)
  ]
  if names == classes_lib.FOLDERS:
    names, sources = _by_folders(sources)
  if data.labelled_only:
    sources = [pools.labelled(source) for source in sources]
  pool = pools.Pool(sources)
  client, test = (
    text and _opened(text, data, names, field, listings, field)
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
  if data.labelled_only:
    client, test = (part and pools.labelled(part) for part in (client, test))
  named = () if names == classes_lib.NUMBERS else names
  return Problem(
    pool,
    client or None,
    test or None,
    _same_domain(pool.source_names, client.name) if client else None,
    len(named) or pool.classes,
    named,
  )


def _by_folders(
  sources: Sequence[pools.Source],
) -> tuple[tuple[str, ...], list[pools.Source]]:
  """Returns the names of folders that hold images, and sources labelled by it.

  The names are in natural order.

  Raises:
    EcosError: There are none, or a source is no folder.
  """
  found: set[str] = set()
  folders = []
  for source in sources:
    if not isinstance(source, folder.FolderSource):
      raise errors.EcosError(
        f"`data.classes`=folders: {source.name} is no folder: name the classes"
      )
    found |= source.class_names
    folders.append(source)
  if not found:
    raise errors.EcosError(
      "`data.classes`=folders: no folder of the pool has folders with images"
    )
  names = tuple(sorted(found, key=files.natural))
  return names, [source.of_classes(names) for source in folders]


def _opened(
  text: str,
  data: config.Data,
  names: tuple[str, ...],
  field: str,
  listings: Path | None,
  name: str,
) -> pools.Source:
  listing = listings / f"{name}.json" if listings is not None else None
  with errors.about(f"data.{field}", text):
    # Labels in arrays are numbers already, and features have none.
    numbered = isinstance(
      spec_lib.parse(text), spec_lib.Images | spec_lib.Features
    )
    numbered |= names == classes_lib.FOLDERS
    classes = None if numbered else names or None
    return pools.open_source(
      text, data.dir, classes, listing, ground=data.ground.value
    )


def _same_domain(names: Sequence[str], client: str) -> int | None:
  """Returns the only source that is of the client's folder or dataset."""

  def domain(name: str) -> str:
    return re.split(r"[:\[]", name)[0]

  same = [i for i, name in enumerate(names) if domain(name) == domain(client)]
  return same[0] if len(same) == 1 else None

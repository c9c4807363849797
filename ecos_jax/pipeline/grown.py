"""A run whose pool has grown since an earlier run, `data.earlier`.

Samples are recognised by the digest of their content, wherever they lie in the
pool. The features that the earlier bank has are copied, so only new samples are
encoded. With `codebook.keep` its centroids stay too: the question is the same,
and so is the answer. The earlier run is read, and never changed.
"""

from pathlib import Path

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import workdir
from ecos_jax.cloud import bank as bank_lib
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import encode
from ecos_jax.data import pools

FINGERPRINTS = "fingerprints.npy"
_POOL, _BANK, _CODEBOOK = "pool", "bank", "codebook"


def check(config: config_lib.Config) -> None:
  """Checks that the earlier run has what is taken from it.

  Raises:
    EcosError: A stage is not finished, or its folder is damaged.
  """
  if config.data.earlier is None:
    return
  for stage in (_POOL, _BANK, *([_CODEBOOK] * config.codebook.keep)):
    try:
      workdir.read_manifest(_folder(config, stage))
    except FileNotFoundError:
      raise errors.EcosError(
        f"`data.earlier`={config.data.earlier} has no finished stage {stage}: "
        "give the `workdir` of a run that has"
      ) from None


def features(
  config: config_lib.Config, pool: pools.Pool, encoder: str
) -> encode.Earlier | None:
  """Returns the earlier bank, and its rows of the pool's samples.

  All processes must call this.

  Args:
    config: Of the run.
    pool: Of images.
    encoder: The digest of the encoder.

  Returns:
    None if there is no earlier run.

  Raises:
    EcosError: Its features are others, or damaged.
  """
  if config.data.earlier is None:
    return None
  folder = _folder(config, _BANK)
  digest = workdir.read_manifest(folder)["result"]["digest"]
  bank = bank_lib.FeatureBank.open(folder, digest)
  if (bank.encoder, bank.dtype.name) != (encoder, config.bank.dtype.value):
    raise errors.EcosError(
      f"`data.earlier`={config.data.earlier} has features of another encoder "
      "or `bank.dtype`: leave it out"
    )
  bank.verify()
  old = workdir.load_array(_folder(config, _POOL) / FINGERPRINTS)
  return encode.Earlier(bank, match(old, pool.fingerprints()))


def match(old: np.ndarray, new: np.ndarray) -> np.ndarray:
  """Returns the first row of `old` [m] for each of `new` [n], -1 if none."""
  _, first, place = np.unique(
    np.concatenate([old, new]), return_index=True, return_inverse=True
  )
  rows = first[place[len(old) :]]
  return np.where(rows < len(old), rows, -1)


def codebook(config: config_lib.Config) -> codebook_lib.Codebook | None:
  """Returns the codebook to keep; None if a new one is made.

  Raises:
    EcosError: It is damaged.
  """
  if not config.codebook.keep:
    return None
  folder = _folder(config, _CODEBOOK)
  digest = workdir.read_manifest(folder)["result"]["digest"]
  return codebook_lib.read(folder, digest)


def _folder(config: config_lib.Config, stage: str) -> Path:
  return Path(str(config.data.earlier)).expanduser() / stage

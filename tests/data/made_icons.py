"""A tiny `icons.npz`: three themes, eight classes, random images."""

from pathlib import Path

import numpy as np

from ecos_jax.data import icons

CONCEPTS = 24


def arrays(themes: int = 3) -> dict[str, np.ndarray]:
  """Returns the arrays of the file; themes share two thirds of the concepts."""
  rng = np.random.default_rng(0)
  concept = np.tile(np.arange(CONCEPTS), themes)
  domain = np.repeat(np.arange(themes), CONCEPTS)
  number = concept + np.where(concept < CONCEPTS * 2 // 3, 0, 8 * domain)
  return {
    "images": rng.integers(0, 256, (len(concept), 64, 64, 3), np.uint8),
    "labels": (concept % 8).astype(np.int16),
    "class_names": np.array([f"class {i}" for i in range(8)]),
    "domains": domain.astype(np.int16),
    "domain_names": np.array(icons.THEMES[:themes]),
    "names": np.array([f"concept {i}" for i in number]),
  }


def write(folder: Path, **changed: np.ndarray) -> str:
  """Writes the file, with some arrays changed; returns the folder."""
  np.savez(folder / "icons.npz", **(arrays() | changed))
  return str(folder)

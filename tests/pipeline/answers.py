"""Answers of several clients, made and brought."""

import dataclasses

import numpy as np

from ecos_jax import messages
from ecos_jax.client import coverage
from ecos_jax.privacy import mechanisms

TERMS = messages.Terms(2.0, 0.8, 1e-5, "add_remove")


def answer(query, seed=0, sigma=2.0, **changes):
  """Returns the answer of a client whose 90 samples lie at one centroid."""
  near = query.centroids[seed % len(query.centroids)].astype(np.float32)
  features = np.tile(near, (90, 1))
  terms = dataclasses.replace(TERMS, sigma=sigma)
  mechanism = mechanisms.Mechanism(terms, None, query.bins, query.weight)
  response = coverage.respond(query, [features], mechanism)
  return dataclasses.replace(response, **changes)


def bring(folder, **found):
  """Writes answers, or bytes, to files of a folder."""
  folder.mkdir(exist_ok=True)
  for name, message in found.items():
    data = message if isinstance(message, bytes) else message.to_bytes()
    (folder / name).write_bytes(data)

"""A query about centroids, its terms, and its exact answer."""

import numpy as np

from ecos_jax import messages
from ecos_jax.client import coverage
from ecos_jax.encoders import registry

TERMS = messages.Terms(10.0, 0.8, 1e-5, "add_remove")


def query_of(rows, encoder=None, **changes):
  encoder = encoder or registry.get("hog")
  fields = {
    "centroids": None if rows is None else rows.astype(np.float32),
    "encoder_name": encoder.name,
    "encoder_settings": encoder.message_settings,
    "encoder_digest": encoder.digest,
    "terms": TERMS,
  }
  return messages.Query(**fields | changes)


def counts_of(features, centroids):
  """Returns how many samples vote for each centroid, without noise."""
  query = query_of(centroids)
  votes = coverage.cast(query, features)
  everyone = np.ones((1, len(features)), np.bool_)
  (counts,), _ = coverage.exact(votes, query, everyone)
  return counts

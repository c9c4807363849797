"""A request for labels, and its terms."""

import dataclasses

import numpy as np

from ecos_jax import messages
from ecos_jax.encoders import registry

TERMS = messages.LabelTerms(
  classes=3,
  neighbours=15,
  sigma_screen=4.0,
  sigma_vote=3.0,
  threshold=6.0,
  gamma=0.5,
  delta=1e-5,
  relation="add_remove",
)


def changed(**changes):
  return dataclasses.replace(TERMS, **changes)


def request_for(features, terms=TERMS):
  encoder = registry.get("hog")
  return messages.LabelRequest(
    features.astype(np.float32),
    terms,
    encoder_name=encoder.name,
    encoder_settings=encoder.settings,
    encoder_digest=encoder.digest,
  )

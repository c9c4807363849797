"""Logits and accuracy of a trained network."""

from typing import Any

from flax import nnx
import jax
import numpy as np
import tqdm

from ecos_jax.data import loader
from ecos_jax.training import augment
from ecos_jax.training import step

_BATCH = 512


def logits(
  model: nnx.Module, source: loader.Samples, mesh: jax.sharding.Mesh
) -> np.ndarray:
  """Returns the logits [n, num_classes] float32 of every sample, in order.

  Args:
    model: Maps [b, s, s, 3] float32 to logits; used in evaluation mode.
    source: At least one sample; its images are not augmented.
    mesh: Each batch is split over its axis `data`.
  """
  everywhere, split = step.shardings(mesh)
  model.eval()
  graph, state = nnx.split(model)

  @jax.jit
  def predict(state: Any, batch: jax.Array) -> jax.Array:
    result = nnx.merge(graph, state)(augment.normalise(batch))
    return jax.lax.with_sharding_constraint(result, everywhere)

  size = -(-_BATCH // mesh.size) * mesh.size
  rows = []
  for start in tqdm.trange(
    0, len(source), size, desc="evaluation", disable=None
  ):
    indices = np.arange(start, min(start + size, len(source)))
    batch = source.batch(indices)["image"]
    padding = [(0, size - len(batch))] + [(0, 0)] * 3
    padded = jax.device_put(np.pad(batch, padding), split)
    rows.append(np.asarray(predict(state, padded))[: len(batch)])
  return np.concatenate(rows)


def accuracy(
  model: nnx.Module,
  images: np.ndarray,
  labels: np.ndarray,
  mesh: jax.sharding.Mesh,
) -> float:
  """Returns the share of images whose largest logit is their label's.

  Args:
    model: Maps [b, s, s, 3] float32 to logits; used in evaluation mode.
    images: [n, s, s, 3] uint8; n > 0.
    labels: [n] integers.
    mesh: Each batch is split over its axis `data`.
  """
  found = logits(model, loader.Arrays({"image": images}), mesh).argmax(-1)
  return float((found == labels).mean())

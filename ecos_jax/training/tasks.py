"""What is trained: where the images come from and what the loss is.

A task is a class with two members: `streams`, the sources whose batches go into
a step, and `loss`, a pure function of model, batches and key that is traced
into the jitted step. Targets other than labels (such as a teacher's logits) are
more arrays in the batches of a source; see `Distill`.
"""

import dataclasses
from typing import NamedTuple, Protocol

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from ecos_jax.data import loader
from ecos_jax.training import augment

Batches = dict[str, dict[str, jax.Array]]
Metrics = dict[str, jax.Array]


class Stream(NamedTuple):
  """Images that flow into the step.

  Attributes:
    source: The images.
    ratio: Images in a step, as a multiple of the batch size.
    labelled: Whether the loss reads `label`; then some labels must be known.
  """

  source: loader.Samples
  ratio: int = 1
  labelled: bool = True


class Task(Protocol):
  """What the training loop needs to know."""

  @property
  def num_classes(self) -> int:
    """Returns the number of logits of the model."""
    ...

  @property
  def streams(self) -> dict[str, Stream]:
    """Returns the sources by name."""
    ...

  def loss(
    self, model: nnx.Module, batches: Batches, key: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """Returns the loss to minimise and metrics to report, all scalars.

    Args:
      model: In training mode; maps views to logits.
      batches: The arrays of each stream, by its name.
      key: Random key of this step.
    """
    ...


def _cross_entropy(
  logits: jax.Array, batch: dict[str, jax.Array]
) -> tuple[jax.Array, Metrics]:
  """Returns loss and accuracy, means over the samples with a known label.

  The loss is against `probabilities` [b, num_classes] where the batch has them.
  """
  labels = batch["label"]
  known = labels >= 0
  count = jnp.maximum(known.sum(), 1)
  if "probabilities" in batch:
    losses = optax.softmax_cross_entropy(logits, batch["probabilities"])
  else:
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.where(known, labels, 0)
    )
  right = (logits.argmax(-1) == labels) & known
  return (losses * known).sum() / count, {"accuracy": right.sum() / count}


@dataclasses.dataclass(frozen=True)
class Supervised:
  """Cross-entropy on weak views; samples with label -1 do not count."""

  num_classes: int
  labelled: loader.Samples

  @property
  def streams(self) -> dict[str, Stream]:
    """Returns the labelled samples."""
    return {"labelled": Stream(self.labelled)}

  def loss(
    self, model: nnx.Module, batches: Batches, key: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """Returns the mean cross-entropy, and the accuracy on the views."""
    batch = batches["labelled"]
    return _cross_entropy(model(augment.weak(batch["image"], key)), batch)


@dataclasses.dataclass(frozen=True)
class FixMatch:
  """FixMatch (Sohn et al., NeurIPS 2020): pseudo-labels beside cross-entropy.

  The class that the model predicts on a weak view of an unlabelled image, with
  a probability of at least `confidence`, is the pseudo-label of a strong view
  of it. The cross-entropies of labels and of pseudo-labels are added.
  """

  num_classes: int
  labelled: loader.Samples
  unlabelled: loader.Samples
  ratio: int
  confidence: float = 0.95

  @property
  def streams(self) -> dict[str, Stream]:
    """Returns labelled samples, and `ratio` times as many unlabelled ones."""
    return {
      "labelled": Stream(self.labelled),
      "unlabelled": Stream(self.unlabelled, self.ratio, labelled=False),
    }

  def loss(
    self, model: nnx.Module, batches: Batches, key: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """Returns the sum of both terms, and metrics of each.

    Returns:
      The loss; `accuracy` on labelled views, `consistency` (the second term)
      and `confident`, the share of unlabelled images that count in it.
    """
    labelled_key, weak_key, strong_key = jax.random.split(key, 3)
    labelled, images = batches["labelled"], batches["unlabelled"]["image"]
    # Pseudo-labels are constants: no gradient through the weak views.
    probabilities = jax.lax.stop_gradient(
      jax.nn.softmax(model(augment.weak(images, weak_key)))
    )
    views = jnp.concatenate(
      [
        augment.weak(labelled["image"], labelled_key),
        augment.strong(images, strong_key),
      ]
    )
    logits = model(views)
    batch_size = len(labelled["image"])
    loss, metrics = _cross_entropy(logits[:batch_size], labelled)
    confident = probabilities.max(-1) >= self.confidence
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits[batch_size:], probabilities.argmax(-1)
    )
    consistency = (losses * confident).mean()
    metrics |= {"consistency": consistency, "confident": confident.mean()}
    return loss + consistency, metrics


@dataclasses.dataclass(frozen=True)
class Distill:
  """A teacher's logits are the targets; no label is read.

  The loss is T^2 KL(teacher || student) of the logits divided by the
  temperature T (Hinton et al., 2015). The batches hold the teacher's logits of
  the images without augmentation, `logits` [b, num_classes]; the student sees
  weak views.
  """

  num_classes: int
  images: loader.Samples
  temperature: float = 4.0

  @property
  def streams(self) -> dict[str, Stream]:
    """Returns the images."""
    return {"proxy": Stream(self.images, labelled=False)}

  def loss(
    self, model: nnx.Module, batches: Batches, key: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """Returns the mean loss, and how often student and teacher agree."""
    batch, t = batches["proxy"], self.temperature
    logits, targets = model(augment.weak(batch["image"], key)), batch["logits"]
    losses = t**2 * optax.losses.kl_divergence_with_log_targets(
      jax.nn.log_softmax(logits / t), jax.nn.log_softmax(targets / t)
    )
    agreement = (logits.argmax(-1) == targets.argmax(-1)).mean()
    return losses.mean(), {"agreement": agreement}

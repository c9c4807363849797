import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from ecos_jax.data import loader
from ecos_jax.training import augment
from ecos_jax.training import tasks

_RNG = np.random.default_rng(0)
_KEY = jax.random.key(0)


def _images(count):
  return jnp.uint8(_RNG.integers(0, 256, (count, 8, 8, 3)))


def _mean_colours(views):
  """Stands for a model of three classes."""
  return 20.0 * views.mean((1, 2))


def _source(count):
  return loader.Arrays({"image": np.zeros((count, 8, 8, 3), np.uint8)})


def test_supervised_is_cross_entropy_of_known_labels_on_weak_views():
  images, labels = _images(6), np.array([0, 2, -1, 1, -1, 2])
  task = tasks.Supervised(3, _source(6))
  batches = {"labelled": {"image": images, "label": jnp.asarray(labels)}}
  loss, values = task.loss(_mean_colours, batches, _KEY)
  logits = np.float64(_mean_colours(augment.weak(images, _KEY)))
  beliefs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  known = labels >= 0
  np.testing.assert_allclose(
    loss,
    metrics.log_loss(labels[known], beliefs[known], labels=range(3)),
    rtol=1e-4,
  )
  right = (logits.argmax(-1) == labels)[known].mean()
  np.testing.assert_allclose(values["accuracy"], right)


def test_supervised_on_probabilities_is_their_cross_entropy():
  images, labels = _images(4), jnp.array([0, 2, -1, 1])
  soft = _RNG.dirichlet(np.ones(3), 4).astype(np.float32)
  batch = {"image": images, "label": labels, "probabilities": soft}
  task = tasks.Supervised(3, _source(4))
  loss, _ = task.loss(_mean_colours, {"labelled": batch}, _KEY)
  logits = np.float64(_mean_colours(augment.weak(images, _KEY)))
  beliefs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  each = -(soft * np.log(beliefs)).sum(-1)
  np.testing.assert_allclose(loss, each[[0, 1, 3]].mean(), rtol=1e-4)


def test_supervised_without_any_label_is_zero():
  task = tasks.Supervised(3, _source(2))
  batches = {"labelled": {"image": _images(2), "label": jnp.full(2, -1)}}
  loss, values = task.loss(_mean_colours, batches, _KEY)
  assert loss == 0 and values["accuracy"] == 0


@pytest.mark.parametrize("confidence", [0.0, 0.4, 1.1])
def test_fixmatch_adds_the_consistency_of_confident_images(confidence):
  ratio = 3
  task = tasks.FixMatch(3, _source(4), _source(9), ratio, confidence)
  labelled = {"image": _images(4), "label": jnp.array([0, 1, 2, 0])}
  unlabelled = _images(4 * ratio)
  batches = {
    "labelled": labelled,
    "unlabelled": {"image": unlabelled, "label": jnp.full(12, -1)},
  }
  loss, values = task.loss(_mean_colours, batches, _KEY)
  keys = jax.random.split(_KEY, 3)
  supervised, _ = tasks.Supervised(3, _source(4)).loss(
    _mean_colours, {"labelled": labelled}, keys[0]
  )
  weak = np.float64(_mean_colours(augment.weak(unlabelled, keys[1])))
  weak = np.exp(weak) / np.exp(weak).sum(-1, keepdims=True)
  strong = np.float64(_mean_colours(augment.strong(unlabelled, keys[2])))
  strong = np.exp(strong) / np.exp(strong).sum(-1, keepdims=True)
  terms = [
    -np.log(strong[i, weak[i].argmax()])
    for i in range(12)
    if weak[i].max() >= confidence
  ]
  np.testing.assert_allclose(values["confident"], len(terms) / 12)
  np.testing.assert_allclose(
    values["consistency"], sum(terms) / 12, rtol=1e-3, atol=1e-6
  )
  np.testing.assert_allclose(loss, supervised + values["consistency"])


def test_fixmatch_learns_from_the_strong_view_only():
  """The targets are constants: no gradient flows through the weak view."""
  images = _images(4)
  task = tasks.FixMatch(3, _source(4), _source(4), 1, confidence=0.0)
  batches = {
    "labelled": {"image": images, "label": jnp.full(4, -1)},
    "unlabelled": {"image": images},
  }
  keys = jax.random.split(_KEY, 3)

  def loss(weight):
    return task.loss(lambda v: weight * _mean_colours(v), batches, _KEY)[0]

  def on_strong_views(weight):
    targets = _mean_colours(augment.weak(images, keys[1])).argmax(-1)
    logits = weight * _mean_colours(augment.strong(images, keys[2]))
    return -jax.nn.log_softmax(logits)[jnp.arange(4), targets].mean()

  np.testing.assert_allclose(
    jax.grad(loss)(1.5), jax.grad(on_strong_views)(1.5), rtol=1e-4, atol=1e-5
  )


def test_streams():
  task = tasks.FixMatch(3, _source(4), _source(9), 5)
  assert {name: s.ratio for name, s in task.streams.items()} == {
    "labelled": 1,
    "unlabelled": 5,
  }


def _kl_by_hand(teacher, student, temperature):
  p = np.exp(teacher / temperature)
  p /= p.sum(-1, keepdims=True)
  q = np.exp(student / temperature)
  q /= q.sum(-1, keepdims=True)
  return temperature**2 * np.mean((p * np.log(p / q)).sum(-1))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_divergence_of_softened_logits(temperature):
  images = _images(6)
  logits = _RNG.normal(size=(6, 3)).astype(np.float32)
  batches = {"proxy": {"image": images, "logits": jnp.asarray(logits)}}
  task = tasks.Distill(3, _source(6), temperature)
  loss, values = task.loss(_mean_colours, batches, _KEY)
  student = np.float64(_mean_colours(augment.weak(images, _KEY)))
  np.testing.assert_allclose(
    loss, _kl_by_hand(np.float64(logits), student, temperature), rtol=1e-4
  )
  np.testing.assert_allclose(
    values["agreement"], np.mean(logits.argmax(-1) == student.argmax(-1))
  )

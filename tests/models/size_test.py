from flax import nnx

from ecos_jax.models import networks
from ecos_jax.models import size


class _ByHand(nnx.Module):
  """8 x 8 images: a 3 x 3 convolution without padding, and a linear layer."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.norm = nnx.BatchNorm(3, use_scale=False, use_bias=False, rngs=rngs)
    self.convolution = nnx.Conv(
      3, 5, (3, 3), padding="VALID", use_bias=False, rngs=rngs
    )
    self.head = nnx.Linear(6 * 6 * 5, 7, use_bias=False, rngs=rngs)

  def __call__(self, images):
    return self.head(self.convolution(images).reshape(len(images), -1))


def test_a_network_counted_by_hand():
  model = _ByHand()
  # The running statistics are not trained weights.
  assert size.parameters(model) == 3 * 3 * 3 * 5 + 6 * 6 * 5 * 7
  assert size.multiply_adds(model, 8) == 6 * 6 * 5 * 27 + 6 * 6 * 5 * 7


def test_padding_counts_and_channels_in_groups_do_not_meet():
  """By hand: 28 -> 14 -> 7 -> 4 pixels, 3 -> 8 -> 16 -> 32 channels."""
  small = networks.get("convnet_small", 10, nnx.Rngs(0))
  small.eval()
  expected = 9 * (14**2 * 3 * 8 + 7**2 * 8 * 16 + 4**2 * 16 * 32) + 32 * 10
  assert size.multiply_adds(small, 28) == expected
  depthwise = nnx.Conv(
    3, 6, (5, 5), feature_group_count=3, use_bias=False, rngs=nnx.Rngs(0)
  )
  assert size.multiply_adds(depthwise, 8) == 8 * 8 * 6 * 25


def test_the_teacher_is_clearly_larger_than_the_student():
  small, large = (
    networks.get(name, 10, nnx.Rngs(0))
    for name in ("convnet_small", "convnet_large")
  )
  for model in (small, large):
    model.eval()
  assert size.parameters(large) > 100 * size.parameters(small)
  assert size.multiply_adds(large, 28) > 100 * size.multiply_adds(small, 28)

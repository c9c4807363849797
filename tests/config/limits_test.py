import pytest

from ecos_jax.config import limits


@pytest.mark.parametrize(
  ("shift", "most"), [(1, 16384.0), (4, 8192.0), (256, 1024.0), (1024, 256.0)]
)
def test_the_largest_sigma_bounds_the_noise_and_the_accounting(shift, most):
  # 16384 over the L2 sensitivity; from a shift of 256 on, memory is the limit.
  assert limits.max_sigma(shift) == most

import numpy as np
import pytest

from configs import digits_manual
from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import pipeline


@pytest.mark.parametrize(
  ("d", "size", "said"),
  [
    (12288, 5, r"d = 12288 are longer than a query may hold \(8192\)"),
    (8192, 9000, r"`codebook.size`=9000 .* more than the 256 MiB"),
  ],
)
def test_a_question_that_no_query_can_hold_is_refused_before_any_work(
  tmp_path, d, size, said
):
  features = np.lib.format.open_memmap(
    tmp_path / "wide.npy", "w+", np.float32, (9001, d)
  )
  del features
  config = config_lib.Config()
  config.data.sources = (f"features:{tmp_path}/wide.npy",)
  config.encoder.name, config.codebook.size = "identity", size
  config.client.remote = True
  with pytest.raises(errors.ConfigError, match=said):
    pipeline.run(config, tmp_path / "run")
  assert not (tmp_path / "run/pool").exists()


def test_noise_that_no_question_of_several_votes_may_have(tmp_path):
  config = digits_manual.get_config("smoke")
  config.privacy.sigma = 5000.0
  said = r"`privacy.sigma`=5000 must be at most 2528.11 with `codebook.votes`"
  with pytest.raises(errors.ConfigError, match=said):
    pipeline.run(config, tmp_path)
  assert not (tmp_path / "pool").exists()


def test_terms_out_of_range_are_refused_before_any_work(tmp_path):
  config = digits_manual.get_config("smoke")
  config.privacy.sigma = 100_000.0
  with pytest.raises(errors.EcosError, match=r"`privacy\.sigma` must lie in"):
    pipeline.run(config, tmp_path)
  assert not (tmp_path / "pool").exists()

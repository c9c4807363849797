import numpy as np
import pytest

from ecos_jax.clustering import assign
from ecos_jax.gpu_check import checks


def test_a_wrong_label_fails(monkeypatch):
  right = assign.assign

  def wrong(features, centroids):
    labels, distances = right(features, centroids)
    return assign.Assignment(np.zeros_like(labels), distances)

  monkeypatch.setattr(assign, "assign", wrong)
  with pytest.raises(checks.CheckError, match="too far"):
    list(checks.random_shapes(tiny=True))
  with pytest.raises(checks.CheckError, match="ties"):
    list(checks.ties(tiny=True))

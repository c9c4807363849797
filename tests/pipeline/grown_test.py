import numpy as np

from ecos_jax.pipeline import grown


def test_samples_are_known_again_by_their_content():
  random = np.random.default_rng(0)
  names = np.frombuffer(random.bytes(16 * 50), "V16")
  old, new = names[:30][::-1], names[20:]
  got = grown.match(old, np.concatenate([new, new[:3]]))
  expected = [29 - i if i < 30 else -1 for i in [*range(20, 50), 20, 21, 22]]
  assert got.tolist() == expected
  assert grown.match(names[[4, 4]], names[[4]]).tolist() == [0]
  assert grown.match(names[:0], names[:2]).tolist() == [-1, -1]

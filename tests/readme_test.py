"""The README's example runs as it stands, and the README stays short."""

from pathlib import Path
import re

import numpy as np

_README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_chooses_rows_like_the_clients(tmp_path, monkeypatch):
  [block] = re.findall(r"```python\n(.*?)```", _README, re.DOTALL)
  assert len([line for line in block.splitlines() if line.strip()]) <= 15
  random = np.random.default_rng(0)
  centres = random.normal(size=(50, 32)).astype(np.float32)
  member = random.integers(50, size=20_000)
  monkeypatch.chdir(tmp_path)
  noise = random.standard_normal((20_000, 32), np.float32)
  np.save("pool.npy", centres[member] + noise / 4)
  noise = random.standard_normal((2000, 32), np.float32)
  np.save("private.npy", centres[random.integers(5, size=2000)] + noise / 4)
  exec(block, {})
  [chosen] = (np.load(f) for f in tmp_path.glob("*.npy") if "chosen" in f.name)
  assert len(set(chosen.tolist())) == 1000
  # The client's five clusters are a tenth of the pool.
  assert np.mean(member[chosen] < 5) > 0.9


def test_it_has_900_words_or_fewer():
  assert len(_README.split()) <= 900

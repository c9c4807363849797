import numpy as np

from ecos_jax.client import command


def test_data_have_one_tag_however_they_are_spelt(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  np.save("f.npy", np.zeros(3))
  file, tag = tmp_path / "f.npy", command.tag_of
  assert tag("f.npy", None) == tag(f"images:{file}", None) == f"images:{file}"
  assert tag("features:f.npy", None) == f"features:{file}"
  assert (
    tag(".", None) == tag(f"folder:{tmp_path}", "x") == f"folder:{tmp_path}"
  )
  mnist = "tfds:mnist:train"
  tags = {
    tag(mnist, folder) for folder in (None, "a", "b", str(tmp_path / "a"))
  }
  assert len(tags) == 3

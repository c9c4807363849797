"""A run for one group of several clients."""

import copy
import json

import numpy as np
import pytest
from sklearn import metrics

from configs import digits_manual
from ecos_jax import errors
from ecos_jax import pipeline
from ecos_jax.data import problem
from ecos_jax.report import collect
from ecos_jax.report import page


@pytest.fixture(name="config")
def _config():
  """Eight clients, each with images of optdigits or of mnist_m."""
  config = digits_manual.get_config("smoke")
  config.data.client = "optdigits+mnist_m"
  config.data.clients, config.data.client_images = 8, 40
  config.data.alpha, config.data.domain_alpha = 1000.0, 0.02
  config.privacy.sigma = 0.5
  config.privacy.insecure_noise_seed = 1
  config.train.steps = 0
  return config


def test_each_group_has_a_proxy(config, tmp_path, capsys):
  every = pipeline.run(config, tmp_path / "all")
  assert every["clients"]["groups"] == []
  data = problem.load(config.data, config.seed)
  names = np.array(data.pool.source_names)
  domain = np.array(
    [np.bincount(data.domains[0][data.owners == i]).argmax() for i in range(8)]
  )
  config.data.earlier, config.codebook.keep = str(tmp_path / "all"), True
  config.sampling.groups = 2
  proxies, shares = {every["proxy_digest"]}, {}
  for group in (1, 2):
    config.sampling.group = group
    path = tmp_path / str(group)
    summary = pipeline.run(config, path)
    members = np.load(path / "groups/members.npy")
    assert metrics.adjusted_rand_score(domain, members) == 1
    sizes = np.bincount(members).tolist()
    assert summary["clients"] == every["clients"] | {
      "groups": sorted(sizes, reverse=True),
      "group": group,
      "signal": summary["clients"]["signal"],
      "nearer": summary["clients"]["nearer"],
      "nearer_at_most": summary["clients"]["nearer_at_most"],
    }
    said = f"the proxy is of group {group} (groups of {sizes[0]}, {sizes[1]})"
    assert said in capsys.readouterr().out
    # The answers are those of the first run: nobody is asked again.
    assert not (path / "client").exists()
    assert pipeline.run(config, path) == summary
    proxies.add(summary["proxy_digest"])
    of = data.pool.source_of(np.load(path / "proxy/indices.npy"))
    kind = domain[members == group - 1][0]
    shares[kind] = np.mean(names[of] == "optdigits")
    html = page.render([collect.read(path)])
    assert f"alike: those of {sizes[group - 1]}" in html
    assert f"The sum of {sizes[group - 1]} of these answers, " in html
  assert len(proxies) == 3
  assert abs(shares[0] - shares[1]) > 0.4


def test_a_run_says_when_noise_hides_the_groups(config, tmp_path, caplog):
  config.privacy.sigma = 20.0
  one = pipeline.run(config, tmp_path / "one")
  config.sampling.groups = config.sampling.group = 2
  summary = pipeline.run(config, tmp_path / "two")
  assert "does not allow to tell 2 groups of clients apart" in caplog.text
  assert summary["clients"]["groups"] == [8]
  assert summary["clients"]["group"] == 1
  assert summary["proxy_digest"] == one["proxy_digest"]
  html = page.render([collect.read(tmp_path / "two")])
  assert "alike: those of" not in html


def test_answers_of_few_numbers_are_one_group(config, tmp_path, caplog):
  config.codebook.size = 2
  config.codebook.question = type(config.codebook.question).COUNTS
  config.sampling.groups = 3
  summary = pipeline.run(config, tmp_path / "run")
  assert summary["clients"]["groups"] == [8]
  assert "answers of 2 numbers cannot make 3 groups" in caplog.text


@pytest.mark.slow
def test_labels_by_votes_are_those_of_the_group(config, tmp_path):
  config.train.task = type(config.train.task).CLIENT
  config.train.steps, config.train.model = 1, "convnet_small"
  labels = []
  config.sampling.groups = 2
  for group in (1, 2):
    config.sampling.group = group
    path = tmp_path / str(group)
    assert pipeline.run(config, path)["clients"]["groups"] != [8]
    labels.append(json.loads((path / "labels/manifest.json").read_bytes()))
  inputs = [each["identity"]["inputs"] for each in labels]
  assert inputs[0]["groups"] == inputs[1]["groups"]
  assert inputs[0]["proxy"] != inputs[1]["proxy"]


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"sampling.group": 3}, "`sampling.group`=3 must be at most"),
    ({"sampling.method": "random"}, "`sampling.method`=random asks nothing"),
    ({"data.clients": 1}, "`sampling.groups`=2 needs as many clients"),
  ],
)
def test_wrong_groups_are_refused(config, tmp_path, changes, said):
  config = copy.deepcopy(config)
  config.sampling.groups = 2
  for name, value in changes.items():
    group, field = name.split(".")
    old = getattr(getattr(config, group), field)
    setattr(getattr(config, group), field, type(old)(value))
  with pytest.raises(errors.ConfigError, match=said):
    pipeline.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()

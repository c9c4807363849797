"""Several clients: their answers are brought, checked, and added up."""

import copy
import shutil

import pytest

from configs import digits_manual
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax import pipeline
from ecos_jax.pipeline import client
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from ecos_jax.report import collect
from ecos_jax.report import page
from tests.pipeline import answers


@pytest.fixture(name="remote", scope="module")
def _remote(tmp_path_factory):
  path = tmp_path_factory.mktemp("remote")
  config = digits_manual.get_config("smoke")
  config.client.remote = True
  config.client.minimum = 2
  config.train.steps, config.train.model = 2, "convnet_small"
  assert pipeline.run(config, path) is None
  file = path / "query/query.safetensors"
  return config, path, messages.Query.from_bytes(file.read_bytes())


def test_the_run_waits_for_the_minimum_and_goes_on_from_more(
  remote, tmp_path, capsys
):
  config, path, query = copy.deepcopy(remote)
  path = shutil.copytree(path, tmp_path / "run")
  one, two, three = (
    answers.answer(query, i, sigma) for i, sigma in enumerate((2, 2, 5))
  )
  answers.bring(path / "responses", berlin=one, bonn=one)
  assert pipeline.run(config, path) is None
  said = capsys.readouterr().out
  assert "refused   bonn: it is the same answer as berlin" in said
  assert "1 of at least 2 have answered" in said
  assert f"{path / 'responses'}\n" in said
  assert not (path / "response").exists()

  answers.bring(path / "responses", turin=two)
  summary = pipeline.run(config, path)
  assert summary["clients"]["answered"] == 2
  votes = query.bins, query.weight
  epsilon = accounting.epsilon(2.0, 0.8, 1e-5, "add_remove", *votes)
  assert summary["clients"]["least_epsilon"] == epsilon == summary["epsilon"]
  assert epsilon < summary["clients"]["together_epsilon"] < 2 * epsilon
  assert summary["bytes_up"] == sum(
    len(answer.to_bytes()) for answer in (one, two)
  )
  capsys.readouterr()

  answers.bring(path / "responses", kiel=three)
  more = pipeline.run(config, path)
  said = capsys.readouterr().out
  assert "1 came since; made again: response, proxy, model" in said
  assert more["clients"]["answered"] == 3
  assert more["clients"]["least_epsilon"] < epsilon
  assert more["proxy_digest"] != summary["proxy_digest"]
  # In any order, and without a break, it comes to the same.
  other = shutil.copytree(remote[1], tmp_path / "other")
  answers.bring(other / "responses", x=one, y=two, z=three)
  again = pipeline.run(config, other)
  assert again["proxy_digest"] == more["proxy_digest"]
  # Nothing is made again, and what was taken is kept.
  shutil.rmtree(path / "responses")
  assert pipeline.run(config, path) == more
  assert "made again" not in capsys.readouterr().out
  config.client.minimum = 4
  assert pipeline.run(config, path) == more
  said = capsys.readouterr().out
  assert "3 answers were used before client.minimum was 4: they stay" in said
  # Who answered is nowhere.
  names = ("berlin", "bonn", "turin", "kiel")
  for file in path.rglob("*"):
    assert not any(name in file.name for name in names)
    if file.suffix in (".json", ".jsonl"):
      assert not any(name in file.read_text() for name in names)
  html = page.render([collect.read(path)])
  assert "3 clients" in html


def test_answers_that_come_to_the_earlier_run_are_taken(
  remote, tmp_path, capsys
):
  config, path, query = copy.deepcopy(remote)
  path = shutil.copytree(path, tmp_path / "run")
  config.train.steps = 0
  one, two, three = (answers.answer(query, i) for i in range(3))
  answers.bring(path / "responses", a=one, b=two)
  every = pipeline.run(config, path)
  group = copy.deepcopy(config)
  group.data.earlier, group.codebook.keep = str(path), True
  group.sampling.groups = 2
  said = tmp_path / "group"
  assert pipeline.run(group, said)["clients"]["answered"] == 2
  answers.bring(path / "responses", c=three)
  every = pipeline.run(config, path)
  capsys.readouterr()
  summary = pipeline.run(group, said)
  assert summary["clients"]["answered"] == every["clients"]["answered"] == 3
  assert "1 came since; made again: response," in capsys.readouterr().out
  assert pipeline.run(group, said) == summary
  out = capsys.readouterr().out
  assert "made again" not in out and "refused" not in out
  # Those to another query are not taken, and the run says so.
  group.privacy.sigma = 3.0
  assert pipeline.run(group, tmp_path / "other") is None
  out = capsys.readouterr().out
  assert f"refused   3 answers of the earlier run {path}, such as resp" in out


def test_a_call_that_is_cut_off_keeps_what_was_brought(
  remote, tmp_path, monkeypatch
):
  config, path, query = remote
  path = shutil.copytree(path, tmp_path / "run")
  one, two, three = (answers.answer(query, i) for i in range(3))
  answers.bring(path / "responses", a=one, b=two)
  first = pipeline.run(config, path)
  answers.bring(path / "responses", c=three)

  def cut(*arguments):
    raise errors.EcosError("cut off")

  with monkeypatch.context() as patch:
    patch.setattr(client.Client, "answers", cut)
    with pytest.raises(errors.EcosError, match="cut off"):
      pipeline.run(config, path)
  assert not (path / "proxy").exists()
  shutil.rmtree(path / "responses")
  again = pipeline.run(config, path)
  assert again["proxy_digest"] == first["proxy_digest"]
  assert again["clients"] == first["clients"]


def test_nothing_but_refused_answers_is_an_error(remote, tmp_path):
  config, path, query = remote
  path = shutil.copytree(path, tmp_path / "run")
  answers.bring(path / "responses", a=query)
  with pytest.raises(errors.EcosError, match=r"no answer .* used: a: kind"):
    pipeline.run(config, path)


def test_simulated_clients_have_a_ledger_each(tmp_path):
  config = digits_manual.get_config("smoke")
  config.data.clients, config.data.client_images = 3, 50
  config.train.steps = 0
  summary = pipeline.run(config, tmp_path)
  assert summary["clients"]["answered"] == 3
  assert summary["epsilon"] == summary["clients"]["most_epsilon"]
  books = [
    ledger.read(tmp_path / "client" / name)
    for name in ("ledger", "ledger-2", "ledger-3")
  ]
  answers = [
    messages.Response.from_bytes(book.entries[0].response) for book in books
  ]
  assert len({answer.client for answer in answers}) == 3
  for answer in answers:
    assert accounting.alone(answer) == summary["epsilon"]
    # Four fifths of 50 vote.
    assert abs(answer.sums[0, -1] - 40) < 12 + 6 * answer.statement.scale
  assert pipeline.run(config, tmp_path) == summary

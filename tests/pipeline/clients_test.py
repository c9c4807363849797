"""Several clients: their answers are brought, checked, and added up."""

import copy
import dataclasses
import errno
import os
import pathlib
import shutil

import numpy as np
import pytest

from configs import digits_manual
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax import pipeline
from ecos_jax.client import coverage
from ecos_jax.pipeline import brought
from ecos_jax.pipeline import client
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms
from ecos_jax.report import collect
from ecos_jax.report import page

TERMS = messages.Terms(2.0, 0.8, 1e-5, "add_remove")


def _answer(query, seed=0, sigma=2.0, **changes):
  near = query.centroids[seed % len(query.centroids)].astype(np.float32)
  features = np.tile(near, (90, 1))
  terms = dataclasses.replace(TERMS, sigma=sigma)
  mechanism = mechanisms.Mechanism(terms, None, query.bins, query.weight)
  answer = coverage.respond(query, [features], mechanism)
  return dataclasses.replace(answer, **changes)


@pytest.fixture(name="query")
def _query():
  return messages.Query(
    np.eye(5, 8, dtype=np.float32),
    TERMS,
    encoder_name="mine",
    encoder_settings={},
    encoder_digest=64 * "0",
  )


def _bring(folder, **answers):
  folder.mkdir(exist_ok=True)
  for name, answer in answers.items():
    data = answer if isinstance(answer, bytes) else answer.to_bytes()
    (folder / name).write_bytes(data)


def test_each_file_is_checked_on_its_own(query, tmp_path):
  good, other = _answer(query), _answer(query, 1)
  stranger = _answer(dataclasses.replace(query, encoder_name="theirs"))
  old = good.to_bytes().replace(rb"version\":3", rb"version\":2")
  _bring(
    tmp_path / "responses",
    a=good,
    b=good,
    c=_answer(query, client=good.client),
    d=stranger,
    e=old,
    f=other.to_bytes()[:-3],
    g=other,
    h=query.to_bytes(),
    **{".half": b"copied", "new\nline": b""},
  )
  (tmp_path / "responses/folder").mkdir()
  os.mkfifo(tmp_path / "responses/pipe")
  files = brought.paths(tmp_path, "response.safetensors")
  found = brought.check(files, query)
  assert [a.digest for a in found.answers] == [good.digest, other.digest]
  refused = dict(line.split(": ", 1) for line in found.refused)
  assert refused["b"] == "it is the same answer as a"
  assert "counts once" in refused["c"]
  assert "answers query" in refused["d"]
  assert "version must be 3" in refused["e"]
  assert "length" in refused["f"]
  assert "another message" in refused["h"]
  assert "is not a file" in refused["folder"]
  assert "is not a file" in refused["pipe"]
  assert "cut off" in refused["new?line"]
  assert len(refused) == 9


def test_a_file_that_may_not_be_read_is_refused(query, tmp_path, monkeypatch):
  good = _answer(query)
  _bring(tmp_path / "responses", a=_answer(query, 1), b=good)
  opened = pathlib.Path.open

  def forbid(path, *args, **kwargs):
    if path.name == "a":
      raise PermissionError(errno.EACCES, "Permission denied")
    return opened(path, *args, **kwargs)

  monkeypatch.setattr(pathlib.Path, "open", forbid)
  found = brought.check(brought.paths(tmp_path, "response.safetensors"), query)
  assert [a.digest for a in found.answers] == [good.digest]
  assert "cannot be read: Permission denied" in found.refused[0]


def test_what_was_taken_stays_taken(query, tmp_path):
  first, second, third = (_answer(query, i) for i in range(3))
  again = _answer(query, client=first.client)
  _bring(tmp_path / "responses", a=again, b=first, c=third)
  _bring(tmp_path, **{"response.safetensors": second})
  files = brought.paths(tmp_path, "response.safetensors")
  found = brought.check(files, query, [first])
  assert found.answers[0] is first
  assert [a.digest for a in found.answers[1:]] == [second.digest, third.digest]
  assert [line.partition(":")[0] for line in found.refused] == ["a"]


@pytest.mark.parametrize("count", [1, 3])
def test_answers_come_back_as_they_were_written(query, tmp_path, count):
  answers = [_answer(query, i) for i in range(count)]
  digest = brought.write(tmp_path, "response.safetensors", answers)
  read = brought.read(tmp_path, "response.safetensors", digest)
  assert [a.digest for a in read] == [a.digest for a in answers]
  last = brought.stored(tmp_path, "response.safetensors")[-1]
  last.write_bytes(_answer(query, 9).to_bytes())
  with pytest.raises(errors.EcosError, match="delete the folder"):
    brought.read(tmp_path, "response.safetensors", digest)


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
    _answer(query, i, sigma) for i, sigma in enumerate((2, 2, 5))
  )
  _bring(path / "responses", berlin=one, bonn=one)
  assert pipeline.run(config, path) is None
  said = capsys.readouterr().out
  assert "refused   bonn: it is the same answer as berlin" in said
  assert "1 of at least 2 have answered" in said
  assert f"{path / 'responses'}\n" in said
  assert not (path / "response").exists()

  _bring(path / "responses", turin=two)
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

  _bring(path / "responses", kiel=three)
  more = pipeline.run(config, path)
  said = capsys.readouterr().out
  assert "1 came since; made again: response, proxy, model" in said
  assert more["clients"]["answered"] == 3
  assert more["clients"]["least_epsilon"] < epsilon
  assert more["proxy_digest"] != summary["proxy_digest"]
  # In any order, and without a break, it comes to the same.
  other = shutil.copytree(remote[1], tmp_path / "other")
  _bring(other / "responses", x=one, y=two, z=three)
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
  one, two, three = (_answer(query, i) for i in range(3))
  _bring(path / "responses", a=one, b=two)
  every = pipeline.run(config, path)
  group = copy.deepcopy(config)
  group.data.earlier, group.codebook.keep = str(path), True
  group.sampling.groups = 2
  said = tmp_path / "group"
  assert pipeline.run(group, said)["clients"]["answered"] == 2
  _bring(path / "responses", c=three)
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
  one, two, three = (_answer(query, i) for i in range(3))
  _bring(path / "responses", a=one, b=two)
  first = pipeline.run(config, path)
  _bring(path / "responses", c=three)

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
  _bring(path / "responses", a=query)
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

import dataclasses
import errno
import os
import pathlib

import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.pipeline import brought
from tests.pipeline import answers


@pytest.fixture(name="query")
def _query():
  return messages.Query(
    np.eye(5, 8, dtype=np.float32),
    answers.TERMS,
    encoder_name="mine",
    encoder_settings={},
    encoder_digest=64 * "0",
  )


def test_each_file_is_checked_on_its_own(query, tmp_path):
  good, other = answers.answer(query), answers.answer(query, 1)
  stranger = answers.answer(dataclasses.replace(query, encoder_name="theirs"))
  old = good.to_bytes().replace(rb"version\":3", rb"version\":2")
  answers.bring(
    tmp_path / "responses",
    a=good,
    b=good,
    c=answers.answer(query, client=good.client),
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
  good = answers.answer(query)
  answers.bring(tmp_path / "responses", a=answers.answer(query, 1), b=good)
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
  first, second, third = (answers.answer(query, i) for i in range(3))
  again = answers.answer(query, client=first.client)
  answers.bring(tmp_path / "responses", a=again, b=first, c=third)
  answers.bring(tmp_path, **{"response.safetensors": second})
  files = brought.paths(tmp_path, "response.safetensors")
  found = brought.check(files, query, [first])
  assert found.answers[0] is first
  assert [a.digest for a in found.answers[1:]] == [second.digest, third.digest]
  assert [line.partition(":")[0] for line in found.refused] == ["a"]


@pytest.mark.parametrize("count", [1, 3])
def test_answers_come_back_as_they_were_written(query, tmp_path, count):
  written = [answers.answer(query, i) for i in range(count)]
  digest = brought.write(tmp_path, "response.safetensors", written)
  read = brought.read(tmp_path, "response.safetensors", digest)
  assert [a.digest for a in read] == [a.digest for a in written]
  last = brought.stored(tmp_path, "response.safetensors")[-1]
  last.write_bytes(answers.answer(query, 9).to_bytes())
  with pytest.raises(errors.EcosError, match="delete the folder"):
    brought.read(tmp_path, "response.safetensors", digest)

import subprocess
import sys

import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import label
from ecos_jax.client import private_knn
from ecos_jax.encoders import registry
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from tests.client.label_requests import TERMS
from tests.client.label_requests import changed
from tests.client.label_requests import request_for


def _unreachable():
  raise AssertionError("the data were opened")


def _agree(text):
  assert "epsilon" in text


# The ledger and the order of things.


def _answer(request, data, path, terms=TERMS, **changes):
  given = {"tag": "mine", "consent": _agree, "epsilon": 50.0, **changes}
  return label.answer(request.to_bytes(), data, terms, path, **given)


def test_labels_are_recorded_and_given_again_for_nothing(
  request_, samples, tmp_path
):
  path = tmp_path / "ledger"
  first = _answer(request_, lambda: samples, path)
  with ledger.locked(path) as book:
    (entry,) = book.entries
  response = messages.LabelResponse.from_bytes(first)
  assert entry.response == first
  assert entry.epsilon == response.epsilon <= 50
  assert entry.cost == accounting.labels(TERMS, 60, response.answers)
  assert _answer(request_, _unreachable, path, max_epsilon=0.0) == first
  # Other terms are another question.
  other = changed(sigma_vote=5.0)
  assert _answer(request_, lambda: samples, path, other) != first
  with ledger.locked(path) as book:
    assert len(book.entries) == 2


def test_what_was_spent_before_leaves_fewer_answers_and_then_none(
  request_, samples, tmp_path
):
  path = tmp_path / "ledger"
  budget = {"epsilon": 2.0, "max_epsilon": 3.0}

  def terms(threshold):
    return changed(sigma_screen=30.0, sigma_vote=6.0, threshold=threshold)

  answers = []
  for threshold in (6.0, 6.5):
    data = _answer(request_, lambda: samples, path, terms(threshold), **budget)
    answers.append(messages.LabelResponse.from_bytes(data).answers)
    with ledger.locked(path) as book:
      assert book.epsilon(TERMS) <= 3.0
  assert 0 < answers[1] < answers[0]
  before = path.read_bytes()
  with ledger.locked(path) as book:
    spent = f"{book.epsilon(TERMS):.6g} was spent before"
  said = f"max_epsilon=3 is not enough: {spent}.*nothing was spent now"
  with pytest.raises(errors.EcosError, match=said):
    _answer(request_, _unreachable, path, terms(7.0), **budget)
  assert path.read_bytes() == before


def test_nothing_is_spent_without_consent_or_on_hostile_bytes(
  request_, samples, tmp_path
):
  path = tmp_path / "ledger"
  told = []

  def refuse(text):
    told.append(text)
    raise errors.EcosError("no")

  with pytest.raises(errors.EcosError, match="no"):
    _answer(request_, _unreachable, path, consent=refuse, max_epsilon=60.0)
  for part in ("3 classes", "60 public samples", "hog", "is left of 60"):
    assert part in told[0]
  assert str(len(samples.labels)) not in told[0]
  data = request_.to_bytes()
  for hostile in (b"", data[:-1], data.replace(b"hog", b"h\x1bg")):
    with pytest.raises(messages.ProtocolError):
      label.answer(
        hostile, _unreachable, TERMS, path, "a", consent=_agree, epsilon=9.0
      )
  with pytest.raises(errors.EcosError, match="another request"):
    private_knn.label(data, samples, private_knn.Labeller(TERMS, 61, 5))
  assert path.read_bytes() == b""


# The command.


def _run(folder, *arguments):
  return subprocess.run(
    [
      sys.executable,
      "-c",
      "import runpy, sys\n"
      "try:\n"
      "  runpy.run_module('ecos_jax.client.label', run_name='__main__')\n"
      "finally:\n"
      "  heavy = 'orbax grain tensorstore flax optax torch tensorflow'\n"
      "  print([name for name in heavy.split() if name in sys.modules])\n",
      f"--request={folder}/request",
      f"--ledger={folder}/ledger",
      f"--out={folder}/out",
      *arguments,
    ],
    capture_output=True,
    text=True,
    stdin=subprocess.DEVNULL,
    check=False,
  )


@pytest.fixture(name="folder")
def _folder(tmp_path):
  """A client's folder: a request of 20, and 211 labelled images."""
  random = np.random.default_rng(2)
  images = random.integers(0, 256, (211, 28, 28, 3), dtype=np.uint8)
  np.savez(
    tmp_path / "images.npz", images=images, labels=random.integers(0, 3, 211)
  )
  features = registry.encode(registry.get("hog"), images[:20])
  (tmp_path / "request").write_bytes(request_for(features).to_bytes())
  return tmp_path


def test_the_command_labels_and_answers_again_for_free(folder):
  arguments = (f"--data={folder}/images.npz", "--epsilon=9", "--yes")
  first = _run(folder, *arguments, "--sigma_vote=4")
  assert first.returncode == 0, first.stderr
  assert first.stdout.splitlines()[-1] == "[]"
  assert "211" not in first.stdout + first.stderr
  out = (folder / "out").read_bytes()
  response = messages.LabelResponse.from_bytes(out)
  assert len(response.labels) == 20
  assert response.terms == changed(sigma_vote=4.0)
  assert response.private
  assert 0 < response.epsilon <= 9
  given = (response.labels >= 0).sum()
  assert f"labels   {given} of 20 answered, " in first.stdout
  again = _run(folder, *arguments, "--sigma_vote=4", "--max_epsilon=9")
  assert "costs nothing" in again.stdout
  assert (folder / "out").read_bytes() == out


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--data={}/images.npz", "--yes"), "--epsilon"),
    (("--data={}/images.npz", "--epsilon=9"), "--yes"),
    (("--data={}/gone.npz", "--epsilon=9", "--yes"), "--data"),
    (("--data={}/images.npz", "--epsilon=0.01", "--yes"), "--epsilon=0.01"),
    (("--data={}/images.npz", "--epsilon=9", "--out={}/request"), "--request"),
    (("--data={}/images.npz", "--epsilon=9", "--out={}/images.npz"), "--data"),
    (("--data={}/images.npz", "--epsilon=9", "--classes=a,b"), "--classes"),
    (
      ("--data={}/images.npz", "--epsilon=9", "--yes", "--classes=a,b,c"),
      "--classes",
    ),
    (("--data={}/images.npz", "--epsilon=nan", "--yes"), "--epsilon=nan"),
    (
      ("--data={}/images.npz", "--epsilon=9", "--max_epsilon=nan", "--yes"),
      "--max_epsilon=nan",
    ),
  ],
)
def test_mistakes_end_in_one_line_that_names_the_flag(
  folder, arguments, message
):
  process = _run(folder, *(a.format(folder) for a in arguments))
  assert process.returncode == 1
  (line,) = process.stderr.splitlines()
  assert line.startswith("error: ")
  assert message in line
  assert not (folder / "out").exists()
  ledger_path = folder / "ledger"
  assert not ledger_path.exists() or ledger_path.read_bytes() == b""


def test_abstaining_and_not_being_considered_are_told_apart():
  """usps, as reported: 75.0 % without a label, of which 55.3 % abstained."""
  text = label.outcome(2000, 1117, 499)
  assert "499 of 2,000 answered, 618 of 1,117 abstained (55.3 %)" in text
  assert "883 not considered: the budget is used up" in text
  assert "not considered" not in label.outcome(2000, 2000, 410)

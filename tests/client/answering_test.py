import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import answering
from ecos_jax.client import encoding
from ecos_jax.client import private_knn
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms
from tests.client import label_requests
from tests.client import queries

MECHANISM = mechanisms.Mechanism(queries.TERMS)


def _unreachable():
  raise AssertionError("the data were opened")


def _agree(text):
  assert "epsilon" in text


def _account(path, **changes):
  return answering.Account(path, **{"consent": _agree} | changes)


@pytest.fixture(name="path")
def _path(tmp_path):
  """A ledger without a limit."""
  ledger.create(tmp_path / "ledger", max_epsilon=math.inf)
  return tmp_path / "ledger"


def _with_budget(tmp_path, max_epsilon):
  path = tmp_path / f"ledger of {max_epsilon}"
  ledger.create(path, max_epsilon=max_epsilon)
  return path


@pytest.fixture(name="query", scope="module")
def _query(features):
  return queries.query_of(features[:5])


def _opened(data, **more):
  """Returns what opens features; what is callable opens, or fails, itself."""
  private = encoding.Private
  return (
    data
    if callable(data)
    else lambda: private(len(data), lambda: [data], **more)
  )


def _unread(size, **more):
  """Returns what opens data that must not be encoded."""
  return lambda: encoding.Private(size, _unreachable, **more)


def _scores(query, data, path, mechanism=MECHANISM, **changes):
  account = _account(path, **changes)
  return answering.answer_query(query, _opened(data), mechanism, account).answer


def _labels(request, samples, path, terms=label_requests.TERMS, **changes):
  epsilon = changes.pop("epsilon", 50.0)
  opened = samples
  if not callable(samples):
    opened = _opened(samples.features, labels=samples.labels)
  return answering.answer_request(
    request, opened, terms, _account(path, **changes), epsilon=epsilon
  ).answer


# Scores.


def test_an_answer_is_recorded_and_given_again_for_nothing(
  query, features, path
):
  first = _scores(query, features, path).to_bytes()
  (entry,) = ledger.read(path).entries
  assert entry.response == first
  assert entry.query_digest == query.digest
  assert entry.epsilon == MECHANISM.statement.epsilon
  again = answering.answer_query(query, _unreachable, MECHANISM, _account(path))
  assert again.answer.to_bytes() == first
  assert again.stored == entry.time
  others = (
    mechanisms.Mechanism(messages.Terms(11, 0.8, 1e-5, "add_remove")),
    mechanisms.Mechanism(queries.TERMS, insecure_noise_seed=1),
    mechanisms.Mechanism(queries.TERMS, insecure_noise_seed=2),
  )
  for other in others:
    assert _scores(query, features, path, other).to_bytes() != first
  assert _scores(query, features, path, name="yours").to_bytes() != first
  assert len(ledger.read(path).entries) == 5


def test_the_budget_is_checked_before_the_data_are_opened(
  query, features, tmp_path
):
  with pytest.raises(errors.EcosError, match=r"`max_epsilon`=0\.2"):
    _scores(query, _unreachable, _with_budget(tmp_path, 0.2))
  path = _with_budget(tmp_path, 0.45)
  _scores(query, features, path)
  # Another question: 0.28 is spent, and both together would be 0.44.
  other = queries.query_of(features[:4])
  tight = _with_budget(tmp_path, 0.43)
  _scores(query, features, tight)
  with pytest.raises(errors.EcosError, match=r"0\.276049 of"):
    _scores(other, _unreachable, tight)
  _scores(other, features, path)
  # A larger delta buys nothing back: the ledger's counts.
  lax = mechanisms.Mechanism(messages.Terms(10, 0.8, 1e-2, "add_remove"))
  third = queries.query_of(features[:3])
  with pytest.raises(errors.EcosError, match="refused"):
    _scores(third, _unreachable, path, lax)


def test_without_a_ledger_nothing_is_answered(query, features, tmp_path):
  # A mistyped path would be a new budget.
  with pytest.raises(ledger.LedgerError, match=r"is not there.*create_ledger"):
    _scores(query, _unreachable, tmp_path / "leger")
  with pytest.raises(ledger.LedgerError, match="create_ledger"):
    answering.answer(
      query.to_bytes(), features, sigma=10.0, ledger=tmp_path / "leger"
    )
  assert list(tmp_path.iterdir()) == []


def test_who_does_not_agree_spends_nothing(query, tmp_path):
  path, told = _with_budget(tmp_path, 1.0), []

  def refuse(text):
    told.append(text)
    raise errors.EcosError("no")

  with pytest.raises(errors.EcosError, match="no"):
    _scores(query, _unread(37), path, consent=refuse)
  for part in ("5 centroids", "hog", "5 integers", "0.276049", "0.5838"):
    assert part in told[0]
  assert "0.723951 is left of 1" in told[0]
  assert ledger.read(path).entries == []


def test_data_that_cannot_be_read_spend_nothing(query, path):

  def missing():
    raise errors.EcosError("`data`: gone")

  with pytest.raises(errors.EcosError, match="gone"):
    _scores(query, missing, path)
  assert ledger.read(path).entries == []


# Labels.


def test_labels_are_recorded_and_given_again_for_nothing(
  request_, samples, path
):
  response = _labels(request_, samples, path)
  (entry,) = ledger.read(path).entries
  first = response.to_bytes()
  assert entry.response == first
  assert entry.epsilon == response.epsilon <= 50
  assert entry.cost == accounting.labels(
    label_requests.TERMS, 60, response.answers
  )
  again = _labels(request_, _unreachable, path)
  assert again.to_bytes() == first
  # Other terms are another question.
  other = label_requests.changed(sigma_vote=5.0)
  assert _labels(request_, samples, path, other).to_bytes() != first
  with ledger.locked(path) as book:
    assert len(book.entries) == 2


def test_what_was_spent_before_leaves_fewer_answers_and_then_none(
  request_, samples, tmp_path
):
  path = _with_budget(tmp_path, 3.0)

  def terms(threshold):
    return label_requests.changed(
      sigma_screen=30.0, sigma_vote=6.0, threshold=threshold
    )

  answers = []
  for threshold in (6.0, 6.5):
    given = _labels(request_, samples, path, terms(threshold), epsilon=2.0)
    answers.append(given.answers)
    with ledger.locked(path) as book:
      assert book.epsilon() <= 3.0
  assert 0 < answers[1] < answers[0]
  before = path.read_bytes()
  with ledger.locked(path) as book:
    spent = f"{book.epsilon():.6g} was spent before"
  said = f"`max_epsilon`=3 is not enough: {spent}.*nothing was spent now"
  with pytest.raises(errors.EcosError, match=said):
    _labels(request_, _unreachable, path, terms(7.0), epsilon=2.0)
  assert path.read_bytes() == before


def test_no_label_is_spent_without_consent(request_, samples, tmp_path):
  path, told = _with_budget(tmp_path, 60.0), []

  def refuse(text):
    told.append(text)
    raise errors.EcosError("no")

  with pytest.raises(errors.EcosError, match="no"):
    _labels(
      request_,
      _unread(len(samples.labels), labels=samples.labels),
      path,
      consent=refuse,
    )
  for part in ("3 classes", "60 public samples", "hog", "is left of 60"):
    assert part in told[0]
  assert str(len(samples.labels)) not in told[0]
  with pytest.raises(errors.EcosError, match="another request"):
    private_knn.label(
      request_, samples, private_knn.Labeller(label_requests.TERMS, 61, 5)
    )
  assert ledger.read(path).entries == []


# On arrays.


def test_scores_on_arrays(query, features, images, path, tmp_path):
  question = query.to_bytes()
  options = {"ledger": _with_budget(tmp_path, 1.0)}
  answer = answering.answer(question, features, epsilon=0.5, **options)
  statement = messages.Response.from_bytes(answer).statement
  assert 0.49 < statement.epsilon <= 0.5 and statement.private
  assert (statement.gamma, statement.relation) == (0.8, "add_remove")
  again = answering.answer(question, features[:3], epsilon=0.5, **options)
  assert again == answer
  with pytest.raises(errors.EcosError, match="`max_epsilon`=1"):
    answering.answer(question, features, sigma=3.0, **options)
  # Images are encoded.
  seeded = {"sigma": 10.0, "insecure_noise_seed": 3}
  kinds = (features, images, jax.numpy.asarray(features), features.tolist())
  answers = {
    answering.answer(question, data, name=str(i), ledger=path, **seeded)
    for i, data in enumerate(kinds)
  }
  assert len(answers) == 1


def test_labels_on_arrays(request_, samples, path):
  question = request_.to_bytes()
  options = {"ledger": path, "epsilon": 50.0}
  answer = answering.label(question, *samples[:2], **options)
  response = messages.LabelResponse.from_bytes(answer)
  assert response.terms == request_.terms and response.epsilon <= 50
  assert answering.label(question, *samples[:2], **options) == answer
  terms = label_requests.changed(sigma_vote=5.0)
  other = answering.label(question, *samples[:2], terms=terms, **options)
  assert messages.LabelResponse.from_bytes(other).terms == terms


def test_wrong_arguments_are_named_and_hostile_questions_touch_nothing(
  query, request_, features, samples, path
):
  question, asked = query.to_bytes(), request_.to_bytes()
  for terms in ({}, {"epsilon": 1.0, "sigma": 2.0}):
    with pytest.raises(errors.EcosError, match="`epsilon` or `sigma`"):
      answering.answer(question, features, ledger=path, **terms)
  with pytest.raises(errors.EcosError, match="gamma"):
    answering.answer(question, features, sigma=3.0, gamma=2.0, ledger=path)
  for terms in ({"epsilon": "x"}, {"epsilon": [1]}, {"epsilon": math.nan}):
    with pytest.raises(errors.EcosError, match="`epsilon` must be"):
      answering.answer(question, features, ledger=path, **terms)
    with pytest.raises(errors.EcosError, match="`epsilon` must be"):
      answering.label(asked, *samples[:2], ledger=path, **terms)
  with pytest.raises(errors.EcosError, match="gamma must be a number"):
    answering.answer(question, features, epsilon=1.0, gamma="x", ledger=path)
  for data in (question, asked):
    for hostile in (
      None,
      "text",
      b"",
      data[:-1],
      data + b"\0",
      data.replace(b"hog", b"h\x1bg"),
    ):
      with pytest.raises(messages.ProtocolError):
        answering.answer(hostile, features, sigma=10.0, ledger=path)
      with pytest.raises(messages.ProtocolError):
        answering.label(hostile, *samples[:2], epsilon=9.0, ledger=path)
  assert ledger.read(path).entries == []
  # Before anybody is asked, and without the number of samples.
  asking = answering.Account(path, consent=pytest.fail)
  for data in (
    features[:, :4],
    features[:, 0],
    features[None],
    features * 1j,
    features.astype(str),
    features.astype(object),
    features.astype(np.uint8),
    [[1.0] * 5, [2.0] * 4],
    None,
  ):
    with pytest.raises(errors.EcosError, match="features, numbers"):
      answering.answer_query(
        query,
        lambda data=data: encoding.opened(query, data),
        mechanisms.Mechanism.of(0.5, None, 0.8, 1e-5, "add_remove"),
        asking,
      )
  wrong = (
    (samples.features[:, :4], samples.labels, r"\[n, 5\]"),
    (samples.features, samples.labels[:9], "`labels`"),
    (samples.features, samples.labels + 0.5, "`labels`"),
  )
  for own, labels, said in wrong:
    with pytest.raises(errors.EcosError, match=said):
      answering.label(asked, own, labels, epsilon=50.0, ledger=path)
  assert ledger.read(path).entries == []


# Persons, and data of which there are none.


@pytest.fixture(name="by_person")
def _by_person(tmp_path):
  """A ledger of persons, without a limit."""
  ledger.create(tmp_path / "persons", max_epsilon=math.inf, unit="person")
  return tmp_path / "persons"


def test_a_person_has_one_vote_however_many_samples(
  query, features, path, by_person
):
  question = query.to_bytes()
  data = np.concatenate([np.repeat(features[:1], 5000, axis=0), features[1:9]])
  ids = ["ann"] * 5000 + [f"other {i}" for i in range(8)]
  options = {"sigma": 3.0, "gamma": 1.0}
  answer = answering.answer(
    question, data, persons=ids, ledger=by_person, **options
  )
  response = messages.Response.from_bytes(answer)
  assert response.statement.unit == "person"
  assert response.scores.sum() < 9 + 12 * 3 * 5**0.5
  whole = answering.answer(question, data, ledger=path, **options)
  assert messages.Response.from_bytes(whole).scores.sum() > 4000
  (entry,) = ledger.read(by_person).entries
  assert entry.terms["unit"] == "person"
  with pytest.raises(errors.EcosError, match="an id for each sample"):
    answering.answer(
      question, data, persons=ids[1:], sigma=9.0, ledger=by_person
    )


def test_a_ledger_is_for_one_unit(
  query, request_, features, samples, path, by_person
):
  question = query.to_bytes()
  ids = np.arange(len(features))
  with pytest.raises(errors.EcosError, match="`persons` must be given"):
    answering.answer(question, features, sigma=9.0, ledger=by_person)
  with pytest.raises(errors.EcosError, match="`persons` must be given"):
    answering.answer(question, features, persons=ids, sigma=9.0, ledger=path)
  mechanism = mechanisms.Mechanism.of(
    None, 9.0, 0.8, 1e-5, "add_remove", unit="person"
  )
  for unit, book in (("person", path), ("sample", by_person)):
    terms = label_requests.changed(unit=unit)
    with pytest.raises(ledger.LedgerError, match="another ledger"):
      _labels(request_, _unreachable, book, terms)
  with pytest.raises(ledger.LedgerError, match="cannot be added up"):
    _scores(query, _unreachable, path, mechanism)
  assert ledger.read(path).entries == ledger.read(by_person).entries == []


def test_the_owner_is_told_the_unit_and_what_drowns(
  query, features, path, by_person
):
  told = []
  mechanism = mechanisms.Mechanism.of(
    None, 10.0, 0.8, 1e-5, "add_remove", unit="person"
  )
  opened = _opened(features, persons=np.arange(len(features)) // 5)
  _scores(query, opened, by_person, mechanism, consent=told.append)
  for part in ("one sample each", "per person", "most counts would drown"):
    assert part in told[0]
  many = np.repeat(features, 10, axis=0)
  _scores(query, many, path, consent=told.append)
  assert "warning" not in told[1] and "per sample" in told[1]


def test_no_data_are_answered_with_noise(query, request_, samples, path):
  told = []
  nothing = np.zeros((0, query.dimension), np.float32)
  response = _scores(query, nothing, path, consent=told.append)
  assert np.abs(response.scores).max() < 120 and response.scores.any()
  # Not a single label, and no sample at all.
  for rows, label in ((samples.features, -1), (samples.features[:0], 0)):
    given = _labels(
      request_,
      _opened(rows, labels=np.full(len(rows), label)),
      path,
      label_requests.changed(threshold=0.0 if label else 0.5),
      consent=told.append,
    )
    assert (given.labels >= 0).any()
  assert "noise alone" in told[0]
  assert all("no sample has a label" in text for text in told[1:])


def test_labels_by_persons(request_, samples, by_person):
  answer = answering.label(
    request_.to_bytes(),
    *samples[:2],
    persons=np.arange(240) // 12,
    ledger=by_person,
    epsilon=50.0,
  )
  assert messages.LabelResponse.from_bytes(answer).terms.unit == "person"


# Runs answers in forked processes that are killed at a random line of the
# package, and reports what was on the disk then, and after one more run.
_KILLED = """
import json, os, pathlib, random, signal, sys
import numpy as np
from ecos_jax import messages
from ecos_jax.client import answering
from ecos_jax.client import encoding
from ecos_jax.privacy import ledger

terms = messages.Terms(10.0, 0.8, 1e-5, "add_remove")
features = np.random.default_rng(0).random((50, 3)).astype(np.float32)
encoder = {"encoder_name": "own", "encoder_settings": {}}
encoder["encoder_digest"] = "0" * 64
query = messages.Query(features[:4], terms, **encoder).to_bytes()

def run(folder):
  path = folder / "ledger"
  ledger.create(path, max_epsilon=1.0)
  response = answering.answer(query, features, sigma=10.0, ledger=path)
  (folder / "out").write_bytes(response)

def traced(folder, last):
  lines = 0
  def trace(frame, event, argument):
    nonlocal lines
    if "ecos_jax" not in frame.f_code.co_filename:
      return None
    if event == "line":
      lines += 1
      if lines == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace
  sys.settrace(trace)
  run(folder)
  sys.settrace(None)
  return lines

def look(folder):
  out = folder / "out"
  path, entries = folder / "ledger", []
  if path.exists() and path.stat().st_size:
    with ledger.locked(path) as book:
      entries = book.entries
  return [entry.response.hex() for entry in entries], (
    out.read_bytes().hex() if out.exists() else None)

def fork(call):
  child = os.fork()
  if child == 0:
    try:
      call()
    finally:
      os._exit(0)
  return child

root = pathlib.Path(sys.argv[1])
def new(name):
  (root / name).mkdir()
  return root / name

run(new("warm"))
total = traced(new("dry"), 0)
random.seed(0)
results = []
# Half of them near the end, between the noise and the answer.
points = random.sample(range(1, total - 49), 25)
points += random.sample(range(total - 49, total + 1), 25)
for number, last in enumerate(points):
  folder = new(str(number))
  child = fork(lambda: traced(folder, last))
  killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
  before = look(folder)
  os.waitpid(fork(lambda: run(folder)), 0)
  results.append([killed, before, look(folder)])

folder = new("together")
for child in [fork(lambda: run(folder)) for _ in range(4)]:
  os.waitpid(child, 0)
print(json.dumps([results, look(folder)]), file=sys.stderr)
"""


def test_killed_at_any_line_an_answer_is_spent_once(tmp_path):
  process = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", _KILLED, str(tmp_path)],
    check=True,
    capture_output=True,
    text=True,
  )
  results, together = json.loads(process.stderr.splitlines()[-1])
  assert len(results) == 50
  waiting = 0
  for killed, (spent, out), (spent_after, out_after) in results:
    assert killed
    # What left the client is in the ledger, and never twice.
    assert out is None or spent == [out]
    assert len(spent_after) == 1
    assert spent_after == [out_after]
    if spent:
      assert spent_after == spent
      waiting += out is None
  assert waiting > 0
  # Four processes with one question share one answer.
  spent, out = together
  assert spent == [out]

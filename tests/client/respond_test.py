import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import command
from ecos_jax.client import coverage
from ecos_jax.client import respond
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms

TERMS = messages.Terms(10.0, 0.8, 1e-5, "add_remove")
MECHANISM = mechanisms.Mechanism(TERMS)
# Imported by the training of the cloud; a client has no use for them.
CLOUD_ONLY = (
  "orbax",
  "grain",
  "tensorstore",
  "flax",
  "optax",
  "tensorflow_datasets",
  "tensorflow",
  "torch",
  "matplotlib",
  "sklearn",
  "pandas",
)


def _query(centroids, encoder=None):
  encoder = encoder or registry.get("hog")
  return messages.Query(
    centroids.astype(np.float32),
    encoder.name,
    encoder.settings,
    encoder.digest,
    TERMS,
  )


@pytest.fixture(name="images", scope="module")
def _images():
  random = np.random.default_rng(0)
  return random.integers(0, 256, (37, 28, 28, 3), dtype=np.uint8)


@pytest.fixture(name="features", scope="module")
def _features(images):
  return registry.encode(registry.get("hog"), images)


@pytest.fixture(name="query", scope="module")
def _hog_query(features):
  return _query(features[:5])


def _unreachable():
  raise AssertionError("the data were opened")


def _agree(text):
  assert "epsilon" in text


# The path from data to scores.


def test_the_response_is_coverage_with_the_stated_noise(query, features):
  # Gamma 1 and repeated answers: the mean is the coverage.
  mechanism = mechanisms.Mechanism(messages.Terms(4, 1, 1e-5, "add_remove"))
  data = query.to_bytes()
  responses = [
    messages.Response.from_bytes(respond.respond(data, features, mechanism))
    for _ in range(400)
  ]
  assert {r.query_digest for r in responses} == {query.digest}
  assert {r.statement for r in responses} == {mechanism.statement}
  noise = np.stack([r.scores for r in responses])
  noise = noise - coverage.coverage(features, query.centroids)
  assert abs(noise.mean()) < 6 * 4 / noise.size**0.5
  assert stats.kstest(noise.ravel() / 4, "norm").statistic < 0.1


def test_images_vote_as_their_features_do(query, images, features):
  expected = coverage.nearest(features, query.centroids)
  source = pools.ArraySource("mine", images)
  for batch_size in (1000, 37, 8):
    votes = respond.vote(query, source, batch_size)
    np.testing.assert_array_equal(votes, expected)


def test_an_image_changes_no_other_image_s_vote(query, images):
  # Bit for bit: the encoder runs on batches of one shape, and the place of an
  # image in its batch must not matter.
  encoder = registry.get("hog")
  features = registry.encode(encoder, images, 16)
  for row in (0, 1, 15, 16, 36):
    fewer = registry.encode(encoder, np.delete(images, row, axis=0), 16)
    np.testing.assert_array_equal(fewer, np.delete(features, row, axis=0))
  order = np.random.default_rng(1).permutation(37)
  shuffled = registry.encode(encoder, images[order], 16)
  np.testing.assert_array_equal(shuffled, features[order])


def test_release_subsamples_and_counts_each_repetition_on_its_own():
  votes = np.repeat([0, 1, 2], [1000, 0, 500])
  answers = respond.release(votes, 3, MECHANISM, repetitions=2000)
  assert answers.shape == (2000, 3)
  # Binomial counts plus noise.
  for column, count in enumerate((1000, 0, 500)):
    variance = count * 0.8 * 0.2 + 10.0**2
    error = answers[:, column].mean() - 0.8 * count
    assert abs(error) < 6 * (variance / 2000) ** 0.5
    assert answers[:, column].var() == pytest.approx(variance, rel=0.2)
  correlation = np.corrcoef(answers.T)
  assert np.abs(correlation - np.eye(3)).max() < 6 / 2000**0.5


def test_no_sample_is_answered_with_noise(query):
  empty = np.zeros((0, query.centroids.shape[1]), np.float32)
  response = respond.respond(query.to_bytes(), empty, MECHANISM)
  scores = messages.Response.from_bytes(response).scores
  assert np.abs(scores).max() < 120


def test_a_seed_gives_the_same_response_and_says_so(query, features):
  seeded = mechanisms.Mechanism(TERMS, insecure_noise_seed=3)
  first = respond.respond(query.to_bytes(), features, seeded)
  assert first == respond.respond(query.to_bytes(), features, seeded)
  assert not messages.Response.from_bytes(first).statement.private


def test_an_encoder_that_differs_is_refused(images):
  source = pools.ArraySource("mine", images)
  encoder = registry.get("hog")
  asked = {
    "centroids": np.zeros((2, encoder.dimension), np.float32),
    "encoder_name": "hog",
    "encoder_settings": encoder.settings,
    "encoder_digest": encoder.digest,
    "terms": TERMS,
  }
  for change, message in (
    ({"encoder_digest": "0" * 64}, "encoder_digest"),
    ({"encoder_name": "unknown"}, "encoder_name: unknown encoder"),
    ({"centroids": np.zeros((2, 3), np.float32)}, "d = 3"),
  ):
    data = messages.Query(**{**asked, **change}).to_bytes()
    with pytest.raises(errors.EcosError, match=message):
      respond.respond(data, source, MECHANISM)


# The ledger and the order of things.


def _answer(query, data, path, mechanism=MECHANISM, **changes):
  given = {"tag": "mine", "consent": _agree, **changes}
  return respond.answer(query.to_bytes(), data, mechanism, path, **given)


def test_an_answer_is_recorded_and_given_again_for_nothing(
  query, features, tmp_path
):
  path = tmp_path / "ledger"
  first = _answer(query, lambda: features, path)
  with ledger.locked(path) as book:
    (entry,) = book.entries
  assert entry.response == first
  assert entry.query_digest == query.digest
  assert entry.epsilon == MECHANISM.statement.epsilon
  assert _answer(query, _unreachable, path, max_epsilon=0.0) == first
  other = mechanisms.Mechanism(messages.Terms(11, 0.8, 1e-5, "add_remove"))
  assert _answer(query, lambda: features, path, other) != first
  assert _answer(query, lambda: features, path, tag="yours") != first
  with ledger.locked(path) as book:
    assert len(book.entries) == 3


def test_the_budget_is_checked_before_the_data_are_opened(
  query, features, tmp_path
):
  path = tmp_path / "ledger"
  with pytest.raises(errors.EcosError, match=r"--max_epsilon=0\.2"):
    _answer(query, _unreachable, path, max_epsilon=0.2)
  with pytest.raises(errors.EcosError, match="refused"):
    _answer(query, _unreachable, path, max_epsilon=float("nan"))
  _answer(query, lambda: features, path, max_epsilon=0.3)
  # Another question: 0.28 is spent, and both together would be 0.42.
  other = _query(features[:4])
  with pytest.raises(errors.EcosError, match=r"0\.276049 of"):
    _answer(other, _unreachable, path, max_epsilon=0.40)
  _answer(other, lambda: features, path, max_epsilon=0.43)
  # Other terms could have been chosen in the light of those: all are added.
  quiet = mechanisms.Mechanism(messages.Terms(200, 0.8, 1e-5, "add_remove"))
  with pytest.raises(errors.EcosError, match="refused"):
    _answer(other, _unreachable, path, quiet, max_epsilon=0.6)
  # A larger delta buys nothing back.
  lax = mechanisms.Mechanism(messages.Terms(10, 0.8, 1e-2, "add_remove"))
  with pytest.raises(errors.EcosError, match="refused"):
    _answer(_query(features[:3]), _unreachable, path, lax, max_epsilon=0.43)


def test_who_does_not_agree_spends_nothing(query, tmp_path):
  path = tmp_path / "ledger"
  told = []

  def refuse(text):
    told.append(text)
    raise errors.EcosError("no")

  with pytest.raises(errors.EcosError, match="no"):
    _answer(query, _unreachable, path, consent=refuse, max_epsilon=1.0)
  for part in ("5 centroids", "hog", "5 integers", "0.276049", "0.5838"):
    assert part in told[0]
  assert "0.723951 is left of 1" in told[0]
  assert path.read_bytes() == b""


def test_a_hostile_query_touches_neither_data_nor_ledger(query, tmp_path):
  data = query.to_bytes()
  for hostile in (
    b"",
    data[:-1],
    data + b"\0",
    data.replace(b"hog", b"h\x1bg"),
  ):
    with pytest.raises(messages.ProtocolError):
      respond.answer(
        hostile,
        _unreachable,
        MECHANISM,
        tmp_path / "ledger",
        "mine",
        consent=_agree,
      )
  assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_read_spend_nothing(query, tmp_path):
  path = tmp_path / "ledger"

  def missing():
    raise errors.EcosError("--data: gone")

  with pytest.raises(errors.EcosError, match="gone"):
    _answer(query, missing, path)
  assert path.read_bytes() == b""


# Runs answers in forked processes that are killed at a random line of the
# package, and reports what was on the disk then, and after one more run.
_KILLED = """
import json, os, pathlib, random, signal, sys
import numpy as np
from ecos_jax import messages
from ecos_jax.messages import wire
from ecos_jax.client import respond
from ecos_jax.privacy import ledger, mechanisms

terms = messages.Terms(10.0, 0.8, 1e-5, "add_remove")
mechanism = mechanisms.Mechanism(terms)
features = np.random.default_rng(0).random((50, 3)).astype(np.float32)
encoder = {"encoder_name": "own", "encoder_settings": {}}
encoder["encoder_digest"] = "0" * 64
query = messages.Query(features[:4], terms, **encoder).to_bytes()

def run(folder):
  response = respond.answer(query, lambda: features, mechanism,
    folder / "ledger", "mine", consent=lambda text: None)
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
  with ledger.locked(folder / "ledger") as book:
    return [entry.response.hex() for entry in book.entries], (
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


# The command.


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


def _run(tmp_path, *arguments):
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "ecos_jax.client.respond",
      f"--query={tmp_path}/query",
      f"--ledger={tmp_path}/ledger",
      f"--out={tmp_path}/out",
      *arguments,
    ],
    capture_output=True,
    text=True,
    stdin=subprocess.DEVNULL,
    check=False,
  )


def test_nothing_private_leaves_and_nothing_heavy_is_loaded(tmp_path):
  n = 1237
  random = np.random.default_rng(5)
  images = random.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
  np.save(tmp_path / "images.npy", images)
  features = registry.encode(registry.get("hog"), images)
  query = _query(features[:5])
  (tmp_path / "query").write_bytes(query.to_bytes())
  script = (
    "import runpy, sys\n"
    "try:\n"
    "  runpy.run_module('ecos_jax.client.respond', run_name='__main__')\n"
    "except SystemExit as end:\n"
    "  assert not end.code, end.code\n"
    f"print([name for name in {CLOUD_ONLY} if name in sys.modules])\n"
  )
  process = subprocess.run(
    [
      sys.executable,
      "-c",
      script,
      f"--query={tmp_path}/query",
      f"--data=images:{tmp_path}/images.npy",
      "--sigma=10",
      "--gamma=1",
      f"--ledger={tmp_path}/ledger",
      f"--out={tmp_path}/out",
      "--yes",
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  assert process.stdout.splitlines()[-1] == "[]"
  out = (tmp_path / "out").read_bytes()
  response = messages.Response.from_bytes(out)
  exact = coverage.coverage(features, query.centroids)
  assert np.abs(response.scores - exact).max() < 120
  written = out + (tmp_path / "ledger").read_bytes()
  printed = (process.stdout + process.stderr).encode()
  for secret in (
    str(n).encode(),
    np.int64(n).tobytes(),
    np.int32(n).tobytes(),
    exact.tobytes(),
    exact.astype(np.int32).tobytes(),
    *(image.tobytes()[:16] for image in images),
  ):
    assert secret not in written
    assert secret not in printed


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--data=features:{}/f.npy",), "--epsilon or --sigma"),
    (("--data=features:{}/f.npy", "--sigma=9"), "--yes"),
    (("--data=features:{}/gone.npy", "--sigma=9", "--yes"), "--data"),
    (("--data=features:{}/query", "--sigma=9", "--yes"), "--data"),
    (("--data=features:{}/wide.npy", "--sigma=9", "--yes"), "--data"),
    (("--data=features:{}/f.npy", "--epsilon=1", "--out={}/no/o"), "--out"),
    (("--data=features:{}/f.npy", "--out={}/ledger"), "--out and --ledger"),
    (("--data=features:{}/f.npy", "--out={}/query"), "--out and --query"),
    (("--data=features:{}/f.npy", "--out={}/link"), "--out and --data"),
    (("--data=features:{}/f.npy", "--out={}/wide.npy"), "no response"),
    (("--data=f.npy", "--ledger={}/query"), "--ledger and --query"),
    (("--data={}/f.npy", "--ledger={}/link"), "--ledger and --data"),
    (
      ("--data=features:{}/f.npy", "--ledger={}/tail", "--sigma=9", "--yes"),
      "no ledger",
    ),
    (
      ("--data=features:{}/f.npy", "--sigma=9", "--gamma=.001", "--delta=.01"),
      "gamma must be above delta",
    ),
  ],
)
def test_mistakes_end_in_one_line_that_names_the_flag(
  tmp_path, features, query, arguments, message
):
  (tmp_path / "query").write_bytes(query.to_bytes())
  np.save(tmp_path / "f.npy", features)
  np.save(tmp_path / "wide.npy", np.zeros((2, 3)))
  (tmp_path / "link").hardlink_to(tmp_path / "f.npy")
  (tmp_path / "tail").write_bytes(b"my notes, without an end of line")
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  process = _run(tmp_path, *(a.format(tmp_path) for a in arguments))
  assert process.returncode == 1
  (line,) = process.stderr.splitlines()
  assert line.startswith("error: ")
  assert message in line
  after = {path: path.read_bytes() for path in tmp_path.iterdir()}
  assert after.pop(tmp_path / "ledger", b"") == b""
  assert after == before


def test_the_command_keeps_the_epsilon_and_answers_again_for_free(
  tmp_path, features, query
):
  terms = messages.Terms(10.0, 1.0, 1e-5, "add_remove")
  query = dataclasses.replace(query, terms=terms)
  (tmp_path / "query").write_bytes(query.to_bytes())
  np.save(tmp_path / "f.npy", features)
  data = f"--data=features:{tmp_path}/f.npy"
  arguments = (data, "--epsilon=0.5", "--relation=replace_one", "--yes")
  first = _run(tmp_path, *arguments)
  assert first.returncode == 0, first.stderr
  out = (tmp_path / "out").read_bytes()
  statement = messages.Response.from_bytes(out).statement
  assert 0.49 < statement.epsilon <= 0.5
  assert statement.relation == "replace_one"
  assert statement.private
  # The client's own, whatever the query proposes.
  assert statement.gamma == 0.8
  # A response may be replaced; changed data are still the same data.
  np.save(tmp_path / "f.npy", features[1:])
  again = _run(tmp_path, *arguments, "--max_epsilon=0.5")
  assert again.returncode == 0, again.stderr
  assert "costs nothing" in again.stdout
  assert "changes to the data" in again.stdout
  assert (tmp_path / "out").read_bytes() == out

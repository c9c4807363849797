import numpy as np
from PIL import Image
import pytest

from ecos_jax import messages
from ecos_jax.encoders import registry
from tests.client.queries import counts_of
from tests.client.queries import query_of


@pytest.fixture(name="run")
def _run(start_job, tmp_path):
  """Runs the command with some flags; returns the job, which has ended."""

  def run(*arguments):
    job = start_job(
      f"--query={tmp_path}/query",
      f"--ledger={tmp_path}/ledger",
      "--create_ledger",
      "--max_epsilon=5",
      f"--out={tmp_path}/out",
      *arguments,
      module="ecos_jax.client.respond",
    )
    return job.wait(), job

  return run


def test_nothing_private_leaves_and_nothing_heavy_is_loaded(
  run_alone, tmp_path
):
  n = 1237
  random = np.random.default_rng(5)
  images = random.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
  np.save(tmp_path / "images.npy", images)
  features = registry.encode(registry.get("hog"), images)
  query = query_of(features[:5])
  (tmp_path / "query").write_bytes(query.to_bytes())
  process = run_alone(
    "ecos_jax.client.respond",
    f"--query={tmp_path}/query",
    f"--data=images:{tmp_path}/images.npy",
    "--sigma=10",
    "--gamma=1",
    f"--ledger={tmp_path}/ledger",
    "--create_ledger",
    "--max_epsilon=1",
    f"--out={tmp_path}/out",
    "--yes",
  )
  assert process.stdout.splitlines()[-1] == "[]"
  out = (tmp_path / "out").read_bytes()
  response = messages.Response.from_bytes(out)
  exact = counts_of(features, query.centroids)
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
    (
      ("--data=features:{}/f.npy", "--sigma=9", "--max_epsilon=.2", "--yes"),
      "--max_epsilon=0.2 is spent",
    ),
    (("--data=features:{}/gone.npy", "--sigma=9", "--yes"), "--data"),
    (("--data=features:{}/query", "--sigma=9", "--yes"), "--data"),
    (("--data=features:{}/wide.npy", "--sigma=9", "--yes"), "--data"),
    (("--data=features:{}/f.npy", "--epsilon=1", "--out={}/no/o"), "--out"),
    (
      ("--data=features:{}/f.npy", "--sigma=9", "--yes", "--nocreate_ledger"),
      "make one with --create_ledger and --max_epsilon",
    ),
    (("--data=features:{}/f.npy", "--out={}/ledger"), "--out and --ledger"),
    (("--data=features:{}/f.npy", "--out={}/query"), "--out and --query"),
    (("--data=features:{}/f.npy", "--out={}/link"), "--out and --data"),
    (("--data=features:{}/f.npy", "--out={}/wide.npy"), "not a response"),
    (("--data=f.npy", "--ledger={}/query"), "--ledger and --query"),
    (("--data={}/f.npy", "--ledger={}/link"), "--ledger and --data"),
    (
      ("--data=features:{}/f.npy", "--ledger={}/tail", "--sigma=9", "--yes"),
      "not a ledger",
    ),
    (
      ("--data=features:{}/f.npy", "--sigma=9", "--gamma=.001", "--delta=.01"),
      "gamma must be above delta",
    ),
  ],
)
def test_mistakes_end_in_one_line_that_names_the_flag(
  run, tmp_path, features, arguments, message
):
  (tmp_path / "query").write_bytes(query_of(features[:5]).to_bytes())
  np.save(tmp_path / "f.npy", features)
  np.save(tmp_path / "wide.npy", np.zeros((2, 3)))
  (tmp_path / "link").hardlink_to(tmp_path / "f.npy")
  (tmp_path / "tail").write_bytes(b"my notes, without an end of line")
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  code, job = run(*(a.format(tmp_path) for a in arguments))
  assert code == 1
  (line,) = job.err.splitlines()
  assert line.startswith("error: ")
  assert message in line
  after = {path: path.read_bytes() for path in tmp_path.iterdir()}
  # At most the budget is there.
  assert after.pop(tmp_path / "ledger", b"").count(b"\n") <= 1
  assert after == before


def test_the_command_keeps_the_epsilon_and_answers_again_for_free(
  run, tmp_path, features
):
  terms = messages.Terms(10.0, 1.0, 1e-5, "add_remove")
  query = query_of(features[:5], terms=terms)
  (tmp_path / "query").write_bytes(query.to_bytes())
  np.save(tmp_path / "f.npy", features)
  data = f"--data=features:{tmp_path}/f.npy"
  arguments = (data, "--epsilon=0.5", "--relation=replace_one", "--yes")
  code, first = run(*arguments)
  assert code == 0, first.err
  out = (tmp_path / "out").read_bytes()
  statement = messages.Response.from_bytes(out).statement
  assert 0.49 < statement.epsilon <= 0.5
  assert statement.relation == "replace_one"
  assert statement.private
  # The client's own, whatever the query proposes.
  assert statement.gamma == 0.8
  # A response may be replaced; changed data are still the same data.
  np.save(tmp_path / "f.npy", features[1:])
  code, again = run(*arguments, "--nocreate_ledger")
  assert code == 0, again.err
  assert "costs nothing" in again.out
  assert "changes to the data" in again.out
  assert (tmp_path / "out").read_bytes() == out


def test_the_owner_is_told_what_is_wrong_with_the_data_before_paying(
  run, tmp_path
):
  features = np.zeros((9, 72), np.float32)
  features[:2] = np.nan
  np.save(tmp_path / "f.npy", features)
  query = query_of(np.zeros((2, 72)))
  (tmp_path / "query").write_bytes(query.to_bytes())
  code, job = run("--sigma=10", f"--data=features:{tmp_path}/f.npy")
  assert code == 1 and "--yes" in job.err
  assert "2 rows hold NaN" in job.out
  folder = tmp_path / "own"
  folder.mkdir()
  Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(folder / "a.png")
  (folder / "patient_7.png").write_bytes(b"no image")
  named = ("--sigma=10", f"--data={folder}", f"--list_unreadable={tmp_path}/l")
  code, job = run(*named)
  assert code == 1 and "--yes" in job.err
  assert "28 x 28 pixels with hog, 1024 at once" in job.out
  assert "1 of the files cannot be read" in job.err
  assert "patient" not in job.err + job.out
  assert (tmp_path / "l").read_text().startswith("patient_7.png: not one of")
  code, job = run(*named)
  assert code == 1 and "--list_unreadable" in job.err


def test_persons_have_one_vote_each_and_the_ledger_keeps_the_unit(
  run, tmp_path, images, features
):
  for number, image in enumerate(np.repeat(images[:1], 40, axis=0)):
    folder = tmp_path / "data" / ("ann" if number else "bob")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{number}.png")
  query = query_of(features[:5])
  (tmp_path / "query").write_bytes(query.to_bytes())
  data = f"--data=folder:{tmp_path}/data"
  code, job = run(data, "--sigma=1", "--gamma=1", "--unit=person", "--yes")
  assert code == 0, job.err
  assert "per person" in job.out and "noise" in job.out
  response = messages.Response.from_bytes((tmp_path / "out").read_bytes())
  assert response.statement.unit == "person"
  # 2 persons, and noise of scale 1: not 40 samples.
  assert response.scores.max() < 2 + 12
  for wrong, said in (
    (("--unit=sample",), "by person"),
    (("--unit=person", "--persons=gone.npy"), "--persons=gone.npy"),
    (("--unit=person", "--persons=age"), "metadata.csv"),
  ):
    code, job = run(data, "--sigma=20", "--yes", *wrong)
    assert code == 1 and said in job.err, job.err


def test_an_empty_folder_is_answered_with_noise(run, tmp_path, features):
  (tmp_path / "query").write_bytes(query_of(features[:5]).to_bytes())
  (tmp_path / "data").mkdir()
  code, job = run(
    f"--data=folder:{tmp_path}/data",
    "--sigma=10",
    "--yes",
  )
  assert code == 0, job.err
  assert "noise alone" in job.out
  response = messages.Response.from_bytes((tmp_path / "out").read_bytes())
  assert np.abs(response.scores).max() < 120

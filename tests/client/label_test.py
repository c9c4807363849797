import numpy as np
import pytest

from ecos_jax import messages
from ecos_jax.encoders import registry
from ecos_jax.privacy import ledger
from tests.client.label_requests import changed
from tests.client.label_requests import request_for


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


@pytest.fixture(name="arguments")
def _arguments(folder):
  return (
    f"--request={folder}/request",
    f"--ledger={folder}/ledger",
    "--create_ledger",
    "--max_epsilon=9",
    f"--out={folder}/out",
  )


def test_the_command_labels_and_answers_again_for_free(
  run_alone, start_job, folder, arguments
):
  arguments += (f"--data={folder}/images.npz", "--epsilon=9", "--yes")
  arguments += ("--sigma_vote=4",)
  first = run_alone("ecos_jax.client.label", *arguments)
  assert first.stdout.splitlines()[-1] == "[]"
  # pytest numbers its folders, and one of them is 211.
  said = (first.stdout + first.stderr).replace(str(folder), "")
  assert "211" not in said
  out = (folder / "out").read_bytes()
  response = messages.LabelResponse.from_bytes(out)
  assert len(response.labels) == 20
  assert response.terms == changed(sigma_vote=4.0)
  assert response.private
  assert 0 < response.epsilon <= 9
  given = (response.labels >= 0).sum()
  assert f"labels   {given} of 20 answered, " in first.stdout
  again = start_job(*arguments, module="ecos_jax.client.label")
  assert again.wait() == 0, again.err
  assert "costs nothing" in again.out
  assert (folder / "out").read_bytes() == out


@pytest.mark.parametrize(
  ("mistakes", "message"),
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
  start_job, folder, arguments, mistakes, message
):
  arguments += tuple(mistake.format(folder) for mistake in mistakes)
  job = start_job(*arguments, module="ecos_jax.client.label")
  assert job.wait() == 1
  (line,) = job.err.splitlines()
  assert line.startswith("error: ")
  assert message in line
  assert not (folder / "out").exists()
  path = folder / "ledger"
  assert not path.exists() or not ledger.read(path).entries

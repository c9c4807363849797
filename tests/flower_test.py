"""Flower's simulation engine carries the messages; it needs the extra."""

import numpy as np
import pytest

from ecos_jax import messages
from ecos_jax.client import answering
from ecos_jax.pipeline import brought
from ecos_jax.privacy import ledger

simulation = pytest.importorskip("flwr.simulation")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ten_clients_of_which_two_fail(tmp_path):
  from ecos_jax import flower

  terms = messages.Terms(3.0, 0.8, 1e-5, "add_remove")
  query = messages.Query(
    np.eye(5, 8, dtype=np.float32),
    terms,
    encoder_name="mine",
    encoder_settings={},
    encoder_digest=64 * "0",
  )
  (tmp_path / "query").mkdir()
  (tmp_path / "query/query.safetensors").write_bytes(query.to_bytes())

  def answer(data, context):
    number = int(context.node_config["partition-id"])
    if number == 3:
      raise ValueError("the private data have 17 rows")
    if number == 7:
      return data[:9]
    book = tmp_path / f"ledger-{number}"
    ledger.create(book, max_epsilon=2.0)
    random = np.random.default_rng(number)
    private = random.normal(size=(100, 8))
    return answering.answer(data, private, sigma=3.0, ledger=book)

  simulation.run_simulation(
    flower.server_app(tmp_path, nodes=10, timeout=200),
    flower.client_app(answer),
    num_supernodes=10,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
  )
  files = brought.paths(tmp_path, "response.safetensors")
  assert len(files) == 9
  found = brought.check(files, query)
  assert len(found.answers) == 8 and len(found.refused) == 1
  kept = [
    messages.Response.from_bytes(ledger.read(path).entries[0].response)
    for path in tmp_path.glob("ledger-*")
  ]
  digests = {answer.digest for answer in found.answers}
  assert digests == {answer.digest for answer in kept}

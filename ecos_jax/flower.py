"""Flower as the transport: it carries the query and the responses, as bytes.

    # At each client: `answer` opens the private data and the ledger.
    app = flower.client_app(
      lambda query, context: ecos_jax.answer(
        query, np.load("private.npy"), epsilon=0.5, ledger="private.ledger"
      )
    )

    # In the cloud, between two calls of `ecos_jax.train` on this workdir.
    app = flower.server_app(Path("runs/several"), nodes=30)

What is asked and answered, and all checks, are those of any other transport:
the files that arrive are answers that the run checks one by one. Flower's
secure aggregation is not used; docs/several_clients.md says why.
"""

from collections.abc import Callable
from pathlib import Path
import time

from absl import logging

from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax.messages import wire

try:
  from flwr import app as flwr  # pyrefly: ignore[missing-import]
  from flwr import clientapp  # pyrefly: ignore[missing-import]
  from flwr import serverapp  # pyrefly: ignore[missing-import]
except ImportError as error:
  raise ImportError("pip install 'ecos_jax[flower]'") from error

_RECORD = "ecos_jax"
# Seconds between two looks at who is there.
_PAUSE = 0.5


def client_app(
  answer: Callable[[bytes, flwr.Context], bytes],
) -> clientapp.ClientApp:
  """Returns a Flower app that answers queries.

  Args:
    answer: Returns the response to a query, given the node's context. If it
      raises, the server is told that this client does not answer, and nothing
      of the reason, which may speak of the private data.
  """
  app = clientapp.ClientApp()

  @app.query()
  def _query(message: flwr.Message, context: flwr.Context) -> flwr.Message:
    try:
      query = message.content.config_records[_RECORD]["query"]
      record = flwr.ConfigRecord({"response": answer(query, context)})
    except Exception:
      logging.exception("this client does not answer")
      record = flwr.ConfigRecord({})
    return flwr.Message(flwr.RecordDict({_RECORD: record}), reply_to=message)

  return app


def server_app(
  workdir: Path, nodes: int, timeout: float = 600.0
) -> serverapp.ServerApp:
  """Returns a Flower app that brings the answers of all nodes to a run.

  Each goes to the folder `responses/`, under its digest: not under its node's
  name.

  Args:
    workdir: Of a run that waits for its clients.
    nodes: How many nodes to wait for before all that are there are asked.
    timeout: How long to wait for these, and then for the answers, in seconds.
  """
  app = serverapp.ServerApp()

  @app.main()
  def _main(grid: serverapp.Grid, context: flwr.Context) -> None:
    del context
    query = wire.read_file(workdir / "query" / "query.safetensors")
    messages.Query.from_bytes(query)
    record = flwr.RecordDict({_RECORD: flwr.ConfigRecord({"query": query})})
    deadline = time.monotonic() + timeout
    while len(list(grid.get_node_ids())) < nodes:
      if time.monotonic() > deadline:
        raise errors.EcosError(f"fewer than {nodes} nodes have come")
      time.sleep(_PAUSE)
    asked = [
      flwr.Message(record, dst_node_id=node, message_type="query")
      for node in grid.get_node_ids()
    ]
    folder = workdir / "responses"
    folder.mkdir(exist_ok=True)
    answered = 0
    for reply in grid.send_and_receive(asked, timeout=timeout):
      data = None
      if reply.has_content() and _RECORD in reply.content.config_records:
        data = reply.content.config_records[_RECORD].get("response")
      if isinstance(data, bytes) and len(data) <= wire.MAX_BYTES:
        files.write(folder / f"{files.digest(data)}.safetensors", data)
        answered += 1
    logging.info("%d of %d nodes have answered", answered, len(asked))

  return app

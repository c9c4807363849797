"""The messages between cloud and client: versioned, bounded, validated.

Four messages cross the trust boundary: `Query` and `Response`, and for client
labelling `LabelRequest` and `LabelResponse`. The trained `Model` travels in the
same way. On the wire each is one safetensors file: a JSON header and one or a
few arrays. It holds nothing that could be executed, and any language can read
it.

Neither side trusts the other. A message has exactly one valid encoding:
`from_bytes` accepts only what `to_bytes` would write. So the sha256 of the
bytes identifies the content, and duplicate fields, hidden bytes and false
lengths are all refused. All sizes are checked before anything of that size is
allocated, and every refusal is a `ProtocolError` that names the field. Names
are plain ASCII, since they are printed on the client's terminal.

    >>> import numpy as np
    >>> terms = Terms(sigma=10, gamma=0.8, delta=1e-5, relation="add_remove")
    >>> query = Query(
    ...   centroids=np.zeros((100, 72), np.float32),
    ...   terms=terms,
    ...   encoder_name="hog",
    ...   encoder_settings={"version": 1},
    ...   encoder_digest=64 * "0",
    ... )
    >>> message = query.to_bytes()
    >>> Query.from_bytes(message).centroids.shape
    (100, 72)
    >>> Query.from_bytes(message[:6])
    Traceback (most recent call last):
      ...
    ecos_jax.messages.wire.ProtocolError: the query is cut off
"""

from ecos_jax.messages.labels import LABEL_MECHANISM
from ecos_jax.messages.labels import LabelRequest
from ecos_jax.messages.labels import LabelResponse
from ecos_jax.messages.message import Question
from ecos_jax.messages.model import Model
from ecos_jax.messages.scores import Query
from ecos_jax.messages.scores import Response
from ecos_jax.messages.terms import LabelTerms
from ecos_jax.messages.terms import Statement
from ecos_jax.messages.terms import Terms
from ecos_jax.messages.wire import ProtocolError


def answer_from_bytes(data: bytes) -> Response | LabelResponse:
  """Returns the client's answer in `data`, to a query or to a label request.

  Raises:
    ProtocolError: It is neither.
  """
  try:
    return Response.from_bytes(data)
  except ProtocolError:
    return LabelResponse.from_bytes(data)


__all__ = [
  "LABEL_MECHANISM",
  "LabelRequest",
  "LabelResponse",
  "LabelTerms",
  "Model",
  "ProtocolError",
  "Query",
  "Question",
  "Response",
  "Statement",
  "Terms",
  "answer_from_bytes",
]

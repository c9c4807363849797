import dataclasses

import numpy as np
import pytest

from ecos_jax import messages
from tests.messages import examples


def test_labels_must_be_classes_or_abstentions():
  for label in (-2, 10):
    with pytest.raises(messages.ProtocolError, match="labels"):
      dataclasses.replace(
        examples.LABEL_RESPONSE, labels=np.array([label], np.int32)
      )


def test_requests_times_classes_are_bounded():
  """Each is a count that the client draws noise for."""
  request = next(
    m for m in examples.MESSAGES if isinstance(m, messages.LabelRequest)
  )
  terms = dataclasses.replace(request.terms, classes=100_000)
  rows = np.zeros((1001, 1), np.float16)
  few = dataclasses.replace(request, features=rows[:1000], terms=terms)
  assert messages.LabelRequest.from_bytes(few.to_bytes()).terms == terms
  with pytest.raises(
    messages.ProtocolError, match="1,001 requests for 100,000"
  ):
    dataclasses.replace(request, features=rows, terms=terms)

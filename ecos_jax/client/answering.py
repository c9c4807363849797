"""How a client answers, scores or labels: one procedure for both.

What is checked comes first, then the ledger, the budget and the consent; only
then are the private data opened, and the answer is in the ledger before anybody
sees it. The same question at the same terms gets the stored answer and costs
nothing.

    >>> import pathlib, tempfile
    >>> random = np.random.default_rng(0)
    >>> private = random.normal(size=(500, 8))
    >>> terms = messages.Terms(10.0, 0.8, 1e-5, "add_remove")
    >>> encoder = {"encoder_name": "mine", "encoder_settings": {}}
    >>> encoder["encoder_digest"] = 64 * "0"
    >>> centroids = random.normal(size=(3, 8)).astype(np.float32)
    >>> question = messages.Query(centroids, terms, **encoder).to_bytes()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   own = {"ledger": pathlib.Path(folder, "ledger"), "max_epsilon": 1.0}
    ...   response = answer(question, private, sigma=10.0, **own)
    ...   again = answer(question, private, sigma=10.0, **own)
    >>> response == again
    True
    >>> messages.Response.from_bytes(response).scores.shape
    (3,)
"""

from collections.abc import Callable, Iterable
import dataclasses
import datetime
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from ecos_jax import errors
from ecos_jax import messages
from ecos_jax.client import coverage
from ecos_jax.client import private_knn
from ecos_jax.privacy import accounting
from ecos_jax.privacy import ledger as ledger_lib
from ecos_jax.privacy import mechanisms

# A constant, and not what the query proposes: its author may have seen earlier
# answers, and terms that depend on those cost more (docs/privacy.md).
GAMMA = 0.8
DELTA = 1e-5

M = TypeVar("M", messages.Response, messages.LabelResponse)


def _agree(text: str) -> None:
  del text


@dataclasses.dataclass(frozen=True)
class Account:
  """What the private data may still give away.

  Attributes:
    ledger: The file with all answers about these data; made if need be.
    data: Name of the data in the ledger.
    max_epsilon: The most that all answers of the ledger may cost together; None
      for no limit.
    consent: Is told what an answer gives away and costs, and raises to stop it.
  """

  ledger: Path
  data: str = "private"
  max_epsilon: float | None = None
  consent: Callable[[str], None] = _agree


class Answered(NamedTuple, Generic[M]):
  """An answer.

  Attributes:
    answer: What may leave the client.
    stored: When it was drawn, if that was before; then it cost nothing now.
  """

  answer: M
  stored: str | None


class _Plan(NamedTuple, Generic[M]):
  """An answer that is still to be drawn.

  Attributes:
    terms: Its terms.
    cost: Its cost.
    text: Says what it gives away.
    draw: Opens the data and draws it.
  """

  terms: messages.Terms | messages.LabelTerms
  cost: accounting.Cost
  text: str
  draw: Callable[[], M]

"""The client of a run: another machine reached by files, or a simulation.

A stage hands over a message and gets the bytes of the answer; nothing else
passes between cloud and client. The simulated client keeps a ledger as a real
one does, so what a run redoes is paid for again, or answered from the ledger.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from pathlib import Path
import shlex
from typing import TypeVar

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax import workdir
from ecos_jax.client import answering
from ecos_jax.client import encoding
from ecos_jax.data import persons as persons_lib
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.messages import message as message_lib
from ecos_jax.messages import wire
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms

_WAITING = """
Waiting for the client{what}. Carry this file to it:
  {message}
There, with its {data} in DIR and its ledger in LEDGER:
  python -m ecos_jax.client.{command} \\
    --epsilon={epsilon} --ledger=LEDGER --out={answer.name}
The first time, --create_ledger and --max_epsilon make the ledger. Bring the
answer back as
  {answer}
and run this command again."""


M = TypeVar("M", bound=message_lib.Message)


def classes_flag(names: Sequence[str]) -> str:
  """Returns the client's flag that names the classes; nothing for none."""
  return f" --classes={shlex.quote(','.join(names))}" if names else ""


class WaitingError(Exception):
  """A remote client has not answered yet; the text says what to carry."""


@dataclasses.dataclass(frozen=True)
class Exchange:
  """A message and the answer to it, as the files that are carried.

  Attributes:
    asked: The stage that wrote the message.
    message: Its file in the folder of that stage.
    answer: The file that a remote client's answer has in the workdir.
    labels: Whether the client is asked for labels rather than for scores.
    first: Whether this is the first of two rounds of scores.
  """

  asked: str
  message: str
  answer: str
  labels: bool = False
  first: bool = False


def reader(kind: type[M], file: str) -> Callable[[Path, str], M]:
  """Returns what reads a message of a kind from a file of a stage's folder."""
  return lambda path, digest: kind.from_bytes(
    workdir.read_bytes(path / file, digest)
  )


class Client:
  """The client of a run, with its ledger if it is simulated."""

  def __init__(
    self,
    config: config_lib.Config,
    work: workdir.Workdir,
    problem: Callable[[], pools.Problem],
    encoder: Callable[[], registry.Encoder],
  ):
    """Prepares the client; nothing is opened yet.

    Args:
      config: Of the run.
      work: Its working directory.
      problem: Returns the data of the run.
      encoder: Returns the public encoder.
    """
    self._config = config
    self._work = work
    self._problem = problem
    self._encoder = encoder

  @property
  def data(self) -> pools.Source:
    """The simulated client's private samples."""
    data = self._problem().client
    assert data is not None  # checks.validate sees to it
    return data

  def check_answered(self, stage: str, exchange: Exchange) -> None:
    """Checks that a remote client's answer is there, or was taken before.

    Raises:
      WaitingError: It is not.
    """
    brought = self._work.path / exchange.answer
    if not self._config.client.remote or distributed.first(
      lambda: (
        brought.exists()
        or self._work.done(stage)
        or self._answered_before(exchange) is not None
      )
    ):
      return
    message = self._work.path / exchange.asked / exchange.message
    if exchange.labels:
      what, data = "'s labels", "labelled images"
      command = f"label --request={message.name} --data=DIR"
      command += classes_flag(self._problem().class_names)
      epsilon = f"{self._config.labelling.max_epsilon:g}"
    else:
      what, data = "", "private data"
      if self._config.codebook.first_round:
        place = "first" if exchange.first else "second"
        what = f", {place} of two questions"
      where = "features:DIR" if self._config.of_features else "DIR"
      command = f"respond --query={message.name} --data={where}"
      epsilon = "EPSILON"
    if self._config.privacy.unit is config_lib.Unit.PERSON:
      command += " --unit=person"
    raise WaitingError(
      _WAITING.format(
        what=what,
        message=message,
        data=data,
        command=command,
        epsilon=epsilon,
        answer=brought,
      )
    )

  def answer(
    self, message: messages.Query | messages.LabelRequest, exchange: Exchange
  ) -> bytes:
    """Returns the answer to a message: brought, or by the simulated client.

    Raises:
      EcosError: The client refuses.
    """
    brought = self._work.path / exchange.answer
    before = self._answered_before(exchange)
    if before is not None and not brought.exists():
      return wire.read_file(before)
    if self._config.client.remote:
      return wire.read_file(brought)
    if isinstance(message, messages.LabelRequest):
      return self._labels(message)
    seed = self._config.privacy.insecure_noise_seed
    if exchange.first and seed is not None:
      # Noise that is independent of the second round's.
      seed += 2**64
    answered = answering.answer_query(
      message,
      lambda: self._opened(message),
      mechanisms.Mechanism(message.terms, seed, message.bins, message.weight),
      self._account(),
    )
    return answered.answer.to_bytes()

  def _answered_before(self, exchange: Exchange) -> Path | None:
    """Returns an earlier run's answer to the very same question, if any."""
    if not self._config.codebook.keep or exchange.labels:
      return None
    earlier = Path(str(self._config.data.earlier)).expanduser()
    asked = Path(exchange.asked) / exchange.message
    # The stage has the name of the file that it keeps.
    answer = earlier / Path(exchange.answer).stem / exchange.answer
    try:
      same = (earlier / asked).read_bytes() == (
        self._work.path / asked
      ).read_bytes()
    except FileNotFoundError:
      return None
    return answer if same and answer.exists() else None

  def _labels(self, request: messages.LabelRequest) -> bytes:
    budget = self._config.labelling.max_epsilon
    try:
      answered = answering.answer_request(
        request,
        lambda: self._opened(request),
        request.terms,
        self._account(),
        epsilon=budget,
        insecure_noise_seed=self._config.privacy.insecure_noise_seed,
      )
    except ledger.BudgetError as error:
      raise errors.EcosError(
        f"the client gives no label for `labelling.max_epsilon`={budget}"
        ": raise it and run again, or take another `workdir` with more noise "
        "(`labelling.sigma_screen`, `labelling.sigma_vote`) or a smaller "
        "`sampling.budget`; the proxy is there all the same"
      ) from error

    return answered.answer.to_bytes()

  def _opened(
    self, message: messages.Query | messages.LabelRequest
  ) -> encoding.Private:
    """Returns the data, with what the message asks for."""
    labels = persons = None
    if isinstance(message, messages.LabelRequest) or message.classes:
      labels = self.data.labels(np.arange(len(self.data)))
    if self._config.privacy.unit is config_lib.Unit.PERSON:
      with errors.about("privacy.unit", "person"):
        persons = persons_lib.read(self.data, None)
    return encoding.opened(
      message,
      self.data,
      self._encoder(),
      self._config.encoder.batch_size,
      labels=labels,
      persons=persons,
    )

  def _account(self) -> answering.Account:
    path = self._work.path / "client" / "ledger"
    path.parent.mkdir(exist_ok=True)
    # Without a limit; the summary computes the total at the answers' terms.
    unit = self._config.privacy.unit.value
    ledger.create(path, max_epsilon=math.inf, unit=unit)
    return answering.Account(path, "simulated")

  def entries(self) -> list[ledger.Entry]:
    """Returns all that the simulated client ever answered in this workdir."""
    path = self._work.path / "client" / "ledger"
    if self._config.client.remote or not path.exists():
      return []
    return ledger.read(path).entries

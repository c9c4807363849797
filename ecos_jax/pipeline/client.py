"""The client of a run: another machine reached by files, or a simulation.

A stage hands over a message and gets the bytes of the answer; nothing else
passes between cloud and client. The simulated client keeps a ledger as a real
one does, so what a run redoes is paid for again, or answered from the ledger.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from pathlib import Path
import shlex
from typing import TypeVar

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax import workdir
from ecos_jax.client import answering
from ecos_jax.client import encoding
from ecos_jax.data import persons as persons_lib
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.messages import message as message_lib
from ecos_jax.messages import wire
from ecos_jax.pipeline import brought
from ecos_jax.privacy import ledger
from ecos_jax.privacy import mechanisms

_WAITING = """
Waiting for the client{what}. Carry this file there:
  {message}
At the client, with its {data} in DIR and its ledger in LEDGER:
  python -m ecos_jax.client.{command} \\
    --epsilon={epsilon} --ledger=LEDGER --out={answer.name}
The first time, --create_ledger and --max_epsilon make the ledger. Bring the
answer back as
  {answer}
{several}and run this command again."""

_SEVERAL = """or those of several clients into the folder
  {folder}
"""


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
    following: The stage that writes a later question. Once it is done, it could
      not be asked again, so no more answers are taken.
  """

  asked: str
  message: str
  answer: str
  labels: bool = False
  first: bool = False
  following: str = ""


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
      problem: Returns the data, with the simulated clients' samples.
      encoder: Returns the public encoder.
    """
    self._config = config
    self._work = work
    self._problem = problem
    self._encoder = encoder
    # The answers that remote clients brought, by name of the file of one.
    self._brought: dict[str, list[messages.Response]] = {}

  @property
  def data(self) -> pools.Source:
    """The simulated clients' private samples."""
    data = self._problem().client
    assert data is not None  # checks.validate sees to it
    return data

  def check_labelled(self, stage: str, exchange: Exchange) -> None:
    """Checks that a remote client's labels are there, or were taken before.

    Raises:
      WaitingError: They are not.
    """
    file = self._work.path / exchange.answer
    if not distributed.first(lambda: file.exists() or self._work.done(stage)):
      raise self._waiting(exchange, by_class=True)

  def check_answered(
    self, stage: str, exchange: Exchange, query: messages.Query
  ) -> None:
    """Checks that enough answers of remote clients are there.

    A finished stage goes on from its answers if others have come since: then it
    and all that was made from it are to be made again.

    Args:
      stage: The stage that takes them.
      exchange: The files.
      query: What they should answer.

    Raises:
      WaitingError: There are fewer than `client.minimum`.
      EcosError: There are none but those that are refused.
    """
    few = distributed.first(lambda: self._look(stage, exchange, query))
    if few is not None:
      raise self._waiting(exchange, few, by_class=query.classes > 0)

  def _look(
    self, stage: str, exchange: Exchange, query: messages.Query
  ) -> int | None:
    """Returns None if enough answers are there; else how many."""
    work, name = self._work, exchange.answer
    done, folder = work.done(stage), work.path / stage
    if done:
      digest = workdir.read_manifest(folder)["result"]["digest"]
      taken = brought.read(folder, name, digest)
    else:
      # Those of a call that was cut off need not be brought again.
      taken = brought.check(brought.stored(folder, name), query).answers
    # Nor those of an earlier run that asked the same.
    earlier = brought.check(self._earlier(exchange), query, taken)
    if earlier.refused:
      print(
        f"refused   {len(earlier.refused):,} answers of the earlier run "
        f"{self._config.data.earlier}, such as {earlier.refused[0]}"
      )
    found = brought.check(
      brought.paths(work.path, name), query, earlier.answers
    )
    for line in found.refused:
      print(f"refused   {line}")
    more = len(found.answers) - len(taken)
    if not found.answers and found.refused:
      raise errors.EcosError(
        f"no answer that was brought can be used: {'; '.join(found.refused)}"
      )
    count, minimum = len(found.answers), self._config.client.minimum
    if not done and count < minimum:
      return count
    if count < minimum:
      print(
        f"{stage:<9} {count:,} answers were used before client.minimum was "
        f"{minimum:,}: they stay in use, and more may still come"
      )
    self._brought[name] = found.answers
    if done and more and work.done(exchange.following):
      print(
        f"{stage:<9} {more:,} came too late: the next question "
        "was made from those before"
      )
    elif done and more:
      redone = ", ".join(work.discard(stage))
      print(f"{stage:<9} {more:,} came since; made again: {redone}")
    return None

  def _waiting(
    self, exchange: Exchange, there: int = 0, *, by_class: bool
  ) -> WaitingError:
    """Returns what to carry to the client, and what to bring back.

    Args:
      exchange: The files.
      there: How many clients have answered.
      by_class: Whether the client must know the classes of its samples.
    """
    file, several = self._work.path / exchange.answer, ""
    if not exchange.labels:
      folder = file.with_name(f"{file.stem}s")
      several = _SEVERAL.format(folder=folder)
    message = self._work.path / exchange.asked / exchange.message
    if exchange.labels:
      what = "'s labels"
      command = f"label --request={message.name} --data=DIR"
      epsilon = f"{self._config.labelling.max_epsilon:g}"
    else:
      what = ""
      if (minimum := self._config.client.minimum) > 1:
        what = f"s: {there:,} of at least {minimum:,} have answered"
      if self._config.codebook.first_round:
        place = "first" if exchange.first else "second"
        what += f", {place} of two questions"
      where = "features:DIR" if self._config.of_features else "DIR"
      command = f"respond --query={message.name} --data={where}"
      epsilon = "EPSILON"
    if by_class:
      command += classes_flag(self._problem().class_names)
    if self._config.privacy.unit is config_lib.Unit.PERSON:
      command += " --unit=person"
    return WaitingError(
      _WAITING.format(
        what=what,
        message=message,
        data="labelled images" if by_class else "private data",
        command=command,
        epsilon=epsilon,
        answer=file,
        several=several,
      )
    )

  def answers(
    self, query: messages.Query, exchange: Exchange
  ) -> list[messages.Response]:
    """Returns the answers to a query: brought, or by the simulated clients.

    Raises:
      EcosError: A client refuses.
    """
    if self._config.client.remote:
      return self._brought[exchange.answer]
    answers = brought.check(self._earlier(exchange), query).answers
    if answers:
      return answers
    for i in range(self._config.data.clients):
      seed = self._config.privacy.insecure_noise_seed
      if seed is not None:
        # Noise that is independent of the other clients', and rounds'.
        seed += 2**64 * (2 * i + exchange.first)
      answered = answering.answer_query(
        query,
        functools.partial(self._opened, query, i),
        mechanisms.Mechanism(query.terms, seed, query.bins, query.weight),
        self._account(i),
      )
      answers.append(answered.answer)
    return answers

  def _earlier(self, exchange: Exchange) -> list[Path]:
    """Returns the files of the answers of the run whose codebook is kept."""
    if not self._config.codebook.keep:
      return []
    # The stage has the name of the file that it keeps.
    stage = Path(exchange.answer).stem
    folder = Path(str(self._config.data.earlier)).expanduser() / stage
    return brought.stored(folder, exchange.answer)

  def labels(self, request: messages.LabelRequest, exchange: Exchange) -> bytes:
    """Returns the answer to a request: brought, or by the simulated client.

    Raises:
      EcosError: The client refuses.
    """
    if self._config.client.remote:
      return wire.read_file(self._work.path / exchange.answer)
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
    self, message: messages.Query | messages.LabelRequest, i: int = 0
  ) -> encoding.Private:
    """Returns the data of client i, with what the message asks for."""
    data, owners = self.data, self._problem().owners
    if owners is not None:
      data = pools.Part(data, np.flatnonzero(owners == i), f"client {i}")
    labels = persons = None
    if isinstance(message, messages.LabelRequest) or message.classes:
      labels = data.labels(np.arange(len(data)))
    if self._config.privacy.unit is config_lib.Unit.PERSON:
      with errors.about("privacy.unit", "person"):
        persons = persons_lib.read(data, None)
    return encoding.opened(
      message,
      data,
      self._encoder(),
      self._config.encoder.batch_size,
      labels=labels,
      persons=persons,
    )

  def _account(self, i: int = 0) -> answering.Account:
    name = f"ledger-{i + 1}" if i else "ledger"
    path = self._work.path / "client" / name
    path.parent.mkdir(exist_ok=True)
    # Without a limit; the summary computes the total at the answers' terms.
    unit = self._config.privacy.unit.value
    seed, who = self._config.privacy.insecure_noise_seed, None
    if seed is not None:
      # So that a seed makes the very same answer in every run.
      who = files.digest(f"{seed} {i}".encode())[:32]
    ledger.create(path, max_epsilon=math.inf, unit=unit, insecure_client=who)
    return answering.Account(path, "simulated")

  def entries(self) -> list[ledger.Entry]:
    """Returns all that the simulated client ever answered in this workdir.

    Of several clients it is the first one's: the others are asked the same, and
    later, so none has answered more.
    """
    path = self._work.path / "client" / "ledger"
    if self._config.client.remote or not path.exists():
      return []
    return ledger.read(path).entries

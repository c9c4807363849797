"""The answers that remote clients brought: files, checked one by one.

A file that is refused costs the others nothing. Who answered is not known: a
response states an id that only tells two answers of one client.
"""

from collections.abc import Sequence
import itertools
from pathlib import Path
from typing import NamedTuple

from ecos_jax import files
from ecos_jax import messages
from ecos_jax import workdir
from ecos_jax.cloud import question
from ecos_jax.messages import wire


class Brought(NamedTuple):
  """The answers to a query.

  Attributes:
    answers: Those to use, one of each client: first those taken before.
    refused: A line for each file that is not used: its name, and why.
  """

  answers: list[messages.Response]
  refused: list[str]


def paths(work: Path, name: str) -> list[Path]:
  """Returns the files with answers, in the order of their names.

  Args:
    work: The workdir.
    name: The file of a single answer; several lie in the folder of this name in
      the plural, under any names.
  """
  single = work / name
  folder = single.with_name(f"{single.stem}s")
  found = [single] if single.exists() else []
  if folder.is_dir():
    # Names that begin with a dot are of files that are still being copied.
    inside = (path for path in folder.iterdir() if path.name[0] != ".")
    found += sorted(inside)
  return found


def check(
  found: Sequence[Path],
  query: messages.Query,
  taken: Sequence[messages.Response] = (),
) -> Brought:
  """Returns which of the answers can be used.

  Args:
    found: From `paths`.
    query: What they should answer.
    taken: Answers that were taken before, and stay; their files may be among
      `found`, once each.
  """
  answers, refused = list(taken), []
  clients = {answer.client for answer in taken}
  stored = {answer.digest for answer in taken}
  seen: dict[str, str] = {}
  for path in found:
    name = files.printable(path.name)
    try:
      # Reading a pipe would wait for a writer.
      if not path.is_file():
        raise messages.ProtocolError("it is not a file")
      data = wire.read_file(path)
      first = seen.setdefault(files.digest(data), name)
      if first != name:
        raise messages.ProtocolError(f"it is the same answer as {first}")
      if files.digest(data) in stored:
        continue
      answer = question.read(data, query)
      if answer.client in clients:
        raise messages.ProtocolError(
          "its client has given another answer already, and counts once"
        )
    except messages.ProtocolError as error:
      refused.append(files.shown(f"{name}: {error}"))
      continue
    clients.add(answer.client)
    answers.append(answer)
  return Brought(answers, refused)


def write(folder: Path, name: str, answers: Sequence[messages.Response]) -> str:
  """Writes the answers that a stage takes, and returns their digest.

  Args:
    folder: Of the stage.
    name: As in `paths`.
    answers: One or more.
  """
  for i, answer in enumerate(answers):
    _numbered(folder, name, i).write_bytes(answer.to_bytes())
  return _digest([answer.digest for answer in answers])


def read(folder: Path, name: str, digest: str) -> list[messages.Response]:
  """Returns what `write` wrote.

  Args:
    folder: Of the stage.
    name: As in `paths`.
    digest: From `write`.

  Raises:
    WorkdirError: It is damaged.
  """
  written = [path.read_bytes() for path in stored(folder, name)]
  if _digest(list(map(files.digest, written))) != digest:
    raise workdir.damaged(folder / name)
  return [messages.Response.from_bytes(data) for data in written]


def stored(folder: Path, name: str) -> list[Path]:
  """Returns the files that `write` wrote, or those it has written so far."""
  numbered = (_numbered(folder, name, i) for i in itertools.count())
  return list(itertools.takewhile(Path.exists, numbered))


def _numbered(folder: Path, name: str, i: int) -> Path:
  """Returns the file of an answer: response.safetensors, response-2 and on."""
  path = folder / name
  return path if i == 0 else path.with_stem(f"{path.stem}-{i + 1}")


def _digest(digests: Sequence[str]) -> str:
  if len(digests) == 1:
    return digests[0]
  return files.digest("".join(digests).encode())

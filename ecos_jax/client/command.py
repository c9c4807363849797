"""What the commands that answer share: flags, preparation, files, consent.

A wrong flag must destroy nothing: a ledger that is replaced by a response
forgets what was spent.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
import sys
from typing import NamedTuple

from absl import flags
import numpy as np

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax.client import answering
from ecos_jax.client import data_flags
from ecos_jax.client import encoding
from ecos_jax.client import ledger_flags
from ecos_jax.client import probing
from ecos_jax.config import classes as classes_lib
from ecos_jax.config import spec as spec_lib
from ecos_jax.data import persons
from ecos_jax.data import pools
from ecos_jax.encoders import registry
from ecos_jax.messages import wire
from ecos_jax.privacy import ledger


def tag_of(
  text: str,
  data_dir: str | None,
  classes: Sequence[str] | None = None,
  persons: str | None = None,
) -> str:
  """Returns one name for the data that a source string names.

  It is the same however the string spells the path, and in any folder.

  Args:
    text: The source string.
    data_dir: As --data_dir.
    classes: Other classes give other labels: an answer about these is another.
    persons: As --persons: with other persons these are other data.
  """
  if persons is not None:
    return f"{tag_of(text, data_dir, classes)} of the persons {persons}"
  if classes is not None and classes != classes_lib.NUMBERS:
    return f"{tag_of(text, data_dir)} with classes {','.join(classes)}"
  match spec_lib.parse(text):
    case spec_lib.Tfds():
      folder = Path(data_dir).expanduser().resolve() if data_dir else "default"
      return f"{text} in {folder}"
    case spec_lib.Folder(path, (first, last)) if (first, last) != (0, 100):
      return f"folder:{path.resolve()}[{first}%:{last}%]"
    case spec_lib.Hub():
      return text
    case source:
      place = str(source.path)
      if "://" not in place:
        place = str(Path(place).resolve())
      column = getattr(source, "column", None)
      return f"{type(source).__name__.lower()}:{place}" + (
        f"#{column}" if column else ""
      )


def define_shared_flags(data: str) -> None:
  """Defines the flags that the commands `respond` and `label` share.

  Args:
    data: The forms of --data.
  """
  flags.DEFINE_string("data", None, f"The private data: {data}", required=True)
  flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
  cli.define_path("out", None, "Where to put the response.", required=True)
  ledger_flags.define()
  flags.DEFINE_bool(
    "create_ledger",
    False,
    "Make the ledger, with --max_epsilon, --delta, --relation and --unit; one "
    "that has these already is taken as it is.",
  )
  flags.DEFINE_string(
    "weights",
    None,
    "Weights of the cloud's encoder, if they are not installed: a file "
    "(.safetensors, .pth) or hub:OWNER/NAME; the digest must be the cloud's.",
  )
  flags.DEFINE_string(
    "encoder",
    None,
    "Your own encoder, MODULE:FUNCTION, if the cloud encodes with it: the code "
    "is run, so only a module that you trust.",
  )
  flags.DEFINE_string(
    "persons",
    None,
    "Where the unit is the person, whose the samples are: FILE.npy, an id for "
    "each, or a column of the metadata. By default each folder in folder:DIR "
    "is a person, and images:FILE.npz has an array persons.",
  )
  data_flags.define_list_unreadable()
  data_flags.define_classes()
  flags.DEFINE_bool("yes", False, "Answer without asking.")
  flags.DEFINE_integer(
    "batch_size", 1024, "Images to encode at once.", lower_bound=1
  )


def _persons(
  data: pools.Source, guarantee: ledger.Guarantee
) -> np.ndarray | None:
  """Returns whose the samples are, [n], if the unit is the person; else None.

  Raises:
    EcosError: Nothing says it, or the unit is the sample and --persons says it.
  """
  text = flags.FLAGS.persons
  if guarantee.unit == config.Unit.PERSON.value:
    return persons.read(data, text)
  if text is not None:
    raise errors.EcosError(f"--persons: the ledger is for {guarantee}")
  return None


def _encoder(message: messages.Question) -> registry.Encoder:
  """Returns the encoder of a message: --encoder, or with --weights.

  Also tells what encoding takes.

  Raises:
    EcosError: It cannot be loaded, is not the message's, or mixes samples.
  """
  f = flags.FLAGS
  own = f.encoder and registry.get(f.encoder, called=encoding.CALLED)
  encoder = encoding.encoder_of(message, own, f.weights)
  print(probing.describe(encoder, f.batch_size))
  return encoder


class Prepared(NamedTuple):
  """What a command answers with.

  Attributes:
    guarantee: Of --ledger.
    data: Opens the private data.
    account: The ledger and the consent.
  """

  guarantee: ledger.Guarantee
  data: Callable[[], encoding.Private]
  account: answering.Account


def prepare(
  message: messages.Query | messages.LabelRequest, path: Path
) -> Prepared:
  """Returns what answers a message, and makes the ledger if --create_ledger.

  Args:
    message: From the cloud.
    path: The ledger.

  Raises:
    EcosError: The encoder, the classes or the ledger do not fit.
  """
  f = flags.FLAGS
  encoder = None
  if not isinstance(spec_lib.parse(f.data), spec_lib.Features):
    encoder = _encoder(message)
  elif message.classes:
    raise errors.EcosError(
      "--data: the question is about classes, and features have no labels: "
      "give images"
    )
  classes = data_flags.classes(message.classes) if message.classes else None
  tag = tag_of(f.data, f.data_dir, classes, f.persons)
  guarantee = ledger_flags.guarantee(path)

  def opened() -> encoding.Private:
    data = data_flags.opened(classes, encoding.ground_of(message))
    labels = data.labels(np.arange(len(data))) if message.classes else None
    return encoding.opened(
      message,
      data,
      encoder,
      f.batch_size,
      labels=labels,
      persons=_persons(data, guarantee),
    )

  return Prepared(guarantee, opened, answering.Account(path, tag, consent))


def write(out: Path, answered: answering.Answered) -> None:
  """Writes an answer to a file and says what to do with it."""
  if answered.stored is not None:
    print(
      f"stored   this was answered at {answered.stored}, so it costs nothing "
      "now; it knows nothing of changes to the data since"
    )
  data = answered.answer.to_bytes()
  files.write(out, data)
  print(f"wrote    {out} ({len(data)} bytes): carry it to the cloud")


def _same_file(a: Path, b: Path) -> bool:
  both = a.exists() and b.exists()
  return a.samefile(b) if both else a.resolve() == b.resolve()


def _is_response(path: Path) -> bool:
  try:
    messages.answer_from_bytes(wire.read_file(path))
  except messages.ProtocolError:
    return False
  return True


def checked_paths(message: str) -> tuple[Path, Path]:
  """Returns --out and --ledger, after checking that nothing is overwritten.

  Args:
    message: The flag that names the cloud's message.

  Raises:
    EcosError: One of them cannot be a file, or is a file of another kind.
  """
  f = flags.FLAGS
  names = ("out", "ledger", message)
  used = {name: Path(str(f[name].value)) for name in names}
  with errors.about("data", f.data):
    data = spec_lib.parse(f.data)
  if not isinstance(data, spec_lib.Tfds | spec_lib.Hub):
    used["data"] = Path(data.path)
  for name in ("out", "ledger"):
    path = used.pop(name)
    if not path.parent.is_dir() or (path.exists() and not path.is_file()):
      raise errors.EcosError(f"--{name}: {path} must be a file in a folder")
    for other, taken in used.items():
      if _same_file(path, taken):
        raise errors.EcosError(f"--{name} and --{other} are one file: {path}")
  out, ledger_path = Path(f.out), Path(f.ledger)
  if out.exists() and not _is_response(out):
    raise errors.EcosError(
      f"--out: {out} exists and is not a response: name another file"
    )
  return out, ledger_path


def consent(text: str) -> None:
  """Prints what an answer costs, and asks for consent unless --yes is given.

  Raises:
    EcosError: Consent is refused, or stdin is not a terminal.
  """
  print(text)
  if flags.FLAGS.yes:
    return
  if not sys.stdin.isatty():
    raise errors.EcosError("nobody is there to ask: give --yes to answer")
  try:
    reply = input("Answer? [y/N] ")
  except EOFError:
    reply = ""
  if reply.strip().lower() not in ("y", "yes"):
    raise errors.EcosError("not answered, and nothing spent")

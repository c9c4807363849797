"""What the commands of the client share: flags, names of data, files, consent.

A wrong flag must destroy nothing: a ledger that is replaced by a response
forgets what was spent.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
import sys
from typing import Any

from absl import flags
import numpy as np

from ecos_jax import cli
from ecos_jax import config
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import messages
from ecos_jax.client import encoding
from ecos_jax.client import probing
from ecos_jax.config import classes as classes_lib
from ecos_jax.config import limits
from ecos_jax.config import spec as spec_lib
from ecos_jax.data import features
from ecos_jax.data import folder
from ecos_jax.data import images
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
  define_ledger()
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
    "each, or a column of the metadata. Without, the folders in folder:DIR are "
    "the persons, or the array persons of images:FILE.npz.",
  )
  define_list_unreadable()
  flags.DEFINE_bool("yes", False, "Answer without asking.")
  flags.DEFINE_integer(
    "batch_size", 1024, "Images to encode at once.", lower_bound=1
  )


def define_ledger() -> None:
  """Defines the flags of commands that make or use a ledger."""
  cli.define_path(
    "ledger",
    None,
    "The file with the budget of these data and all answers about them.",
    required=True,
  )
  fixed = "fixed when the ledger is made"
  flags.DEFINE_float(
    "max_epsilon",
    None,
    f"The most that all answers may ever cost together, {fixed}; inf for no "
    "limit.",
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    "delta",
    None,
    f"The delta of (epsilon, delta), {fixed}; 1e-5 without.",
    lower_bound=limits.MIN_DELTA,
    upper_bound=limits.MAX_DELTA,
  )
  flags.DEFINE_enum_class(
    "relation",
    None,
    config.Relation,
    f"What epsilon hides, {fixed}: that a sample was added or removed "
    "(add_remove, without), or replaced.",
  )
  flags.DEFINE_enum_class(
    "unit",
    None,
    config.Unit,
    f"Whose presence epsilon hides, {fixed}: that of one sample (without), or "
    "of one person with all samples of theirs. Of a person one random sample "
    "votes.",
  )


def fixed() -> dict[str, Any]:
  """Returns those fields of a ledger's guarantee that flags give."""
  names = ("max_epsilon", "delta", "relation", "unit")
  given = {name: flags.FLAGS[name].value for name in names}
  return {name: value for name, value in given.items() if value is not None}


def guarantee(path: Path) -> ledger.Guarantee:
  """Returns the guarantee of --ledger, after making it if --create_ledger.

  Raises:
    EcosError: There is no ledger, or it has another guarantee than the flags.
  """
  if flags.FLAGS.create_ledger:
    return create(path)
  found = ledger.read(path).guarantee
  if dataclasses.replace(found, **fixed()) != found:
    raise errors.EcosError(
      f"`ledger`: {path} was made for {found}, for good: leave out "
      "`max_epsilon`, `delta`, `relation` and `unit`"
    )
  return found


def create(path: Path) -> ledger.Guarantee:
  """Makes --ledger.

  Raises:
    EcosError: A flag is missing, or there is a ledger with another guarantee.
  """
  if flags.FLAGS.max_epsilon is None:
    raise errors.EcosError(
      "a new ledger needs `max_epsilon`: the most that all answers about these "
      "data may ever cost together"
    )
  return ledger.create(path, **fixed())


def define_classes() -> None:
  """Defines the flag of commands that read labels."""
  flags.DEFINE_list(
    "classes",
    None,
    "For folder:DIR, the names of the folders in the order of the cloud's "
    "classes: a,b,c; or `numbers`: the name of a folder is the number of its "
    "class. Take the list from the cloud, not from the data.",
  )


def classes(count: int) -> tuple[str, ...] | None:
  """Returns --classes; None if it is not given.

  Args:
    count: The cloud's number of classes.

  Raises:
    EcosError: --classes names another number, or is missing where --data is a
      folder.
  """
  f = flags.FLAGS
  if f.classes is None:
    if isinstance(spec_lib.parse(f.data), spec_lib.Folder):
      raise errors.EcosError(
        "--classes must name the folders that are classes, in the cloud's "
        "order: a,b,c; or say that their names are numbers: --classes=numbers"
      )
    return None
  names = classes_lib.named(f.classes)
  if names == classes_lib.FOLDERS:
    raise errors.EcosError(
      "--classes=folders is for the cloud: the list of the classes must come "
      "from there, not from the data"
    )
  if names != classes_lib.NUMBERS and len(names) != count:
    raise errors.EcosError(
      f"--classes names {len(names)} classes, the cloud has {count}: name all, "
      "in the cloud's order, also those that the data lack"
    )
  return names


def define_list_unreadable() -> None:
  """Defines the flag of commands that open folders."""
  cli.define_path(
    "list_unreadable",
    None,
    "A new file for the names of the files in folder:DIR that cannot be read, "
    "and why. Without, only their number is told.",
  )


def open_data(
  classes: Sequence[str] | None = None, ground: str = images.WHITE
) -> pools.Source:
  """Returns the private data that --data names; tells what is wrong with them.

  Args:
    classes: As in `pools.open_source`.
    ground: As in `images.rgb`.

  Raises:
    EcosError: They cannot be opened, or --list_unreadable exists.
  """
  f = flags.FLAGS
  with errors.about("data", f.data):
    # A refusal of an empty folder would show that it is empty.
    data = pools.open_source(
      f.data, f.data_dir, classes, may_be_empty=True, ground=ground
    )
  if isinstance(data, folder.FolderSource) and classes is not None:
    _tell_classes(data, classes)
  if f.list_unreadable is not None:
    unreadable = getattr(data, "unreadable", [])
    lines = [f"{file.name}: {file.why}" for file in unreadable]
    text = "".join(f"{files.printable(line)}\n" for line in lines)
    try:
      Path(f.list_unreadable).open("xb").close()
    except FileExistsError:
      raise errors.EcosError(
        f"--list_unreadable: {f.list_unreadable} exists: name a new file"
      ) from None
    files.write(Path(f.list_unreadable), text.encode())
  if isinstance(data, features.FeatureSource):
    bad = data.unusable()
    if bad:
      print(
        f"data     {bad:,} rows hold NaN, infinite or huge values: NaN and "
        "infinity count as zeros, and\n         the votes of these rows say "
        "nothing: leave them out"
      )
  return data


def _tell_classes(data: folder.FolderSource, classes: Sequence[str]) -> None:
  """Prints which classes no folder has: the owner may have misspelt them.

  No error: a refusal would show what the data lack.
  """
  names = set(classes) - set(classes_lib.NUMBERS) - data.class_names
  if names:
    near = classes_lib.missing(sorted(names), data.class_names)
    print(f"classes  no image is in a folder of the name {near}")
  if (data.labels(np.arange(len(data))) < 0).any():
    print("classes  images in other folders are of no class")


def persons_of(
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


def encoder_of(message: messages.Question) -> registry.Encoder:
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


def write(out: Path, data: bytes, stored: str | None) -> None:
  """Writes an answer and says what to do with it.

  Args:
    out: The file.
    data: The answer.
    stored: As in `answering.Answered`.
  """
  if stored is not None:
    print(
      f"stored   this was answered at {stored}, so it costs nothing now; it "
      "knows nothing of changes to the data since"
    )
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

"""python -m ecos_jax.study: see the package's docstring."""

import fnmatch
from pathlib import Path
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from ecos_jax import cli
from ecos_jax import errors
from ecos_jax import workdir as workdir_lib
from ecos_jax.study import plan
from ecos_jax.study import results
from ecos_jax.study import run

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "File of a study, and its argument: FILE[:ARGUMENT]."
)
_WORKDIR = cli.define_path("workdir", None, "Folder of this study.")
_LIST = flags.DEFINE_bool("list", False, "Show the trials, and run nothing.")
_TRIALS = flags.DEFINE_string(
  "trials", "*", "Run only those whose names match: --trials='client=usps,*'."
)
_WORKERS = flags.DEFINE_integer(
  "workers",
  None,
  "Processes at once; by default one per core, as memory allows, and one on an "
  "accelerator.",
  lower_bound=1,
)
_OUT = cli.define_path(
  "out", None, "Markdown file that also gets the results: docs/results.md."
)


def _command(name: str) -> str:
  """Returns the command line, without the folders of this machine."""
  lines = ["python -m ecos_jax.study"]
  arguments = iter(sys.argv[1:])
  for argument in arguments:
    flag, equals, value = argument.partition("=")
    if flag.lstrip("-").partition(".")[0] == "config":
      value = value if equals else next(arguments, "")
      if flag.endswith("data.dir"):
        value = "DIR"
      lines.append(f"{flag}={shlex.quote(value)}")
  lines += [f"--workdir=runs/{name}", "--out=docs/results.md"]
  return " \\\n  ".join(lines)


def main(argv: list[str]) -> None:
  """Runs the trials that are not done yet, and writes the results."""
  del argv
  study = cli.config_of(_CONFIG, plan.Study)
  if not _WORKDIR.value:
    raise errors.ConfigError(
      "--workdir is missing: name a folder for the study"
    )
  study.validate()
  workdir = Path(_WORKDIR.value).absolute()
  if _LIST.value:
    print(run.listing(study, workdir))
    return
  chosen = [
    t for t in study.trials() if fnmatch.fnmatchcase(t.name, _TRIALS.value)
  ]
  if not chosen:
    raise errors.ConfigError(
      f"--trials={_TRIALS.value} matches no trial: --list shows them"
    )
  with workdir_lib.Workdir(workdir):
    run.run(study, chosen, workdir, _WORKERS.value)
    text, files = results.write(study, workdir, _command(study.name))
    if _OUT.value:
      results.insert(Path(_OUT.value), study.name, text, files)
  print(f"\n{text}\nwritten to {workdir}: results.md, rows.csv, rows.json")
  failed = [t.name for t in chosen if run.row(workdir, t) is None]
  if failed:
    raise errors.EcosError(
      f"{len(failed)} of {len(chosen)} trials failed, the first is "
      f"{failed[0]}: {workdir}/results.md has the reasons, and the same "
      "command runs these again"
    )


if __name__ == "__main__":
  cli.run(main)

"""python -m ecos_jax.report: see the package's docstring."""

from pathlib import Path

from ecos_jax import cli
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import workdir
from ecos_jax.report import collect
from ecos_jax.report import page

_WORKDIR = cli.define_paths(
  "workdir", "Working directories of finished runs, separated by commas."
)
_OUT = cli.define_path(
  "out", None, "The page; by default report.html in the first --workdir."
)


def main(argv: list[str]) -> None:
  """Prints the table of the runs that --workdir names, and writes the page."""
  del argv
  if not _WORKDIR.value:
    raise errors.ConfigError("--workdir is missing: name one or more runs")
  paths = [Path(path) for path in dict.fromkeys(_WORKDIR.value)]
  out = Path(_OUT.value) if _OUT.value else paths[0] / "report.html"
  try:
    runs = [collect.read(path) for path in paths]
    html = page.render(runs)
  # It names the folder to delete, but not the command that redoes a stage.
  except workdir.WorkdirError as error:
    raise errors.EcosError(
      f"{error} with python -m ecos_jax.train, and run this again"
    ) from error
  print(collect.table(runs))
  try:
    files.write(out, html.encode())
  except OSError as error:
    raise errors.ConfigError(
      f"--out={out} cannot be written: {error.strerror}"
    ) from error
  print(f"\nreport    {out}")


if __name__ == "__main__":
  cli.run(main)

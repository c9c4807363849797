"""What a study consists of: cells, and how they lie in tables and plots.

A study is a configuration and the fields of it that vary. A cell is one run: it
has a name, the values of the varied fields, and a configuration of its own that
`ecos_jax.train` would run alone with the same result.
"""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import itertools
import json
from pathlib import Path
import runpy
import shlex
from typing import Any

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax.config import checks
from ecos_jax.config import reading
from ecos_jax.study import figures

REPEATED = "seed"
_NAME_LIMIT = 200  # file systems allow 255 bytes

Axes = Mapping[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Table:
  """One table: the mean and the standard deviation over seeds.

  Attributes:
    title: Its heading.
    rows: Fields whose values make the rows.
    metrics: Which figures are shown, by their names in `figures.FIGURES`.
    columns: A field whose values make the columns, each with all metrics.
    mean_over: Fields over whose values the mean is taken, for each seed apart.
      A seed for which one of them is missing is left out.
  """

  title: str
  rows: tuple[str, ...]
  metrics: tuple[str, ...]
  columns: str | None = None
  mean_over: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plot:
  """One picture: lines over numbers, bars over names.

  Attributes:
    name: Of its files.
    x: A field, or the name of a figure.
    y: The name of a figure.
    lines: A field whose values make the lines, or the bars at one place.
    panels: A field whose values make panels side by side.
    mean_over: As in `Table`.
    log_x: Whether x is logarithmic.
  """

  name: str
  x: str
  y: str
  lines: str
  panels: str | None = None
  mean_over: tuple[str, ...] = ()
  log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run.

  Attributes:
    name: Of its folder.
    values: The varied fields and their values.
    config: What is run.
  """

  name: str
  values: dict[str, Any]
  config: config_lib.Config

  @property
  def pool(self) -> str:
    """Returns what cells have in common that read the same data."""
    fields = config_lib.flatten(self.config)
    same = {k: v for k, v in fields.items() if k.startswith("data.")}
    return json.dumps([same, self.config.seed])


@dataclasses.dataclass
class Study(config_lib.Config):
  """A configuration, and which of its fields vary; see `of`.

  Attributes:
    base: FILE[:ARGUMENT] that the configuration is from.
    name: Of its place in a document.
    title: Heading of the results.
    about: Markdown below it: what was chosen, and why.
    grids: Cells are every combination of the values of a grid's fields; the
      study is all grids together.
    follow: Fields that take the value of another one in every cell.
    tables: What is shown.
    plots: What is drawn.
    labels: What to show instead of a value, by field.
    paper: Which of the paper's figures stand beside (`paper.TABLES`).
  """

  base: str = ""
  name: str = ""
  title: str = ""
  about: str = ""
  grids: tuple[Axes, ...] = ()
  follow: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tables: tuple[Table, ...] = ()
  plots: tuple[Plot, ...] = ()
  labels: Mapping[str, Mapping[Any, str]] = dataclasses.field(
    default_factory=dict
  )
  paper: str | None = None

  def validate(self) -> None:
    """Checks the study and the configuration of every cell.

    Raises:
      ConfigError: All errors at once.
    """
    found: dict[str, None] = {}
    try:
      cells = self.cells()
    except errors.ConfigError as error:
      raise errors.ConfigError(f"--config: {error}") from None
    for cell in cells:
      if cell.config.client.remote:
        found["--config.client.remote: a study simulates its clients"] = None
      try:
        checks.validate(cell.config)
      except errors.ConfigError as error:
        found[f"{cell.name}: {error}"] = None
    before = config_lib.flatten(read(self.base))
    always = set.intersection(*map(set, self.grids)) | set(self.follow)
    for name, value in config_lib.flatten(self.base_config()).items():
      if name in always and value != before[name]:
        found[f"--config.{name}={value}: the study sets it in all cells"] = None
    axes = {name for grid in self.grids for name in grid}
    for shown in (*self.tables, *self.plots):
      found |= dict.fromkeys(self._layout_errors(shown, axes))
    if found:
      raise errors.ConfigError("; ".join(found))

  def _layout_errors(self, shown: Table | Plot, axes: set[str]) -> list[str]:
    if isinstance(shown, Table):
      what = f"table '{shown.title}'"
      keys = {*shown.rows, *filter(None, [shown.columns])}
      wanted = set(shown.metrics)
    else:
      what = f"plot '{shown.name}'"
      wanted = {shown.y}
      keys = {shown.lines, *filter(None, [shown.panels])}
      (wanted if shown.x in figures.FIGURES else keys).add(shown.x)
    found = [
      f"{what}: there is no figure {name}; valid: {', '.join(figures.FIGURES)}"
      for name in sorted(wanted - figures.FIGURES.keys())
    ]
    found += [
      f"{what}: no grid varies {name}"
      for name in sorted(keys | set(shown.mean_over))
      if name not in axes
    ]
    # A plot whose x is a figure has a point for each value of one more field.
    if isinstance(shown, Table) or shown.x not in figures.FIGURES:
      found += [
        f"{what}: {name} varies and is neither shown nor averaged"
        for name in sorted(axes - keys - set(shown.mean_over) - {REPEATED})
      ]
    return found

  def cells(self) -> list[Cell]:
    """Returns all cells; those with the same data lie together.

    Raises:
      ConfigError: A grid names no field, or a value that a field cannot have,
        or two cells are the same.
    """
    found, cells = [], []
    short = _short_names(name for grid in self.grids for name in grid)
    for grid in self.grids:
      for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        config = self.base_config()
        wrong = reading.assign(config, chosen)
        fields = config_lib.flatten(config)
        if unknown := [f for f in self.follow.values() if f not in fields]:
          wrong += [f"follow: there is no field {name}" for name in unknown]
        else:
          follow = {k: fields[v] for k, v in self.follow.items()}
          wrong += reading.assign(config, follow)
        found += wrong
        name = ",".join(f"{short[k]}={v}" for k, v in chosen.items())
        cells.append(Cell(name.replace("/", "-")[:_NAME_LIMIT], chosen, config))
    if not cells:
      found.append("the study has no cells: give it grids with values")
    names = [cell.name for cell in cells]
    found += [f"two cells are {n}" for n in set(names) if names.count(n) > 1]
    if found:
      raise errors.ConfigError("; ".join(dict.fromkeys(found)))
    first = {cell.pool: i for i, cell in reversed(list(enumerate(cells)))}
    return sorted(cells, key=lambda cell: first[cell.pool])

  def figures(self) -> set[str]:
    """Returns the names of all figures that are shown."""
    names = {metric for table in self.tables for metric in table.metrics}
    return names | {n for plot in self.plots for n in (plot.x, plot.y)}

  def base_config(self) -> config_lib.Config:
    """Returns the configuration that the cells differ from."""
    names = [field.name for field in dataclasses.fields(config_lib.Config)]
    return config_lib.Config(
      **{name: copy.deepcopy(getattr(self, name)) for name in names}
    )


def of(base: str, **fields: Any) -> Study:
  """Returns the study of what varies in a configuration.

  Args:
    base: FILE[:ARGUMENT] with get_config(), as `ecos_jax.train` takes it.
    fields: Those of `Study`.
  """
  config = read(base)
  return Study(**vars(config), base=base, **fields)


def smoke(argument: str) -> bool:
  """Returns whether a study file's argument is `smoke`.

  Raises:
    ConfigError: It is another one than that or none.
  """
  if argument not in ("", "smoke"):
    raise errors.ConfigError(
      f"--config=...:{argument}: unknown argument; valid: smoke"
    )
  return bool(argument)


def read(base: str) -> Any:
  """Returns what get_config() of FILE[:ARGUMENT] returns."""
  path, _, argument = base.partition(":")
  return runpy.run_path(path)["get_config"](argument)


def command(study: Study, cell: Cell, workdir: Path) -> str:
  """Returns the command that runs a cell alone.

  Args:
    study: The study.
    cell: One of its cells.
    workdir: For the run.
  """
  base = config_lib.flatten(read(study.base))
  flags = [
    f"--config.{name}={shlex.quote(str(value))}"
    for name, value in config_lib.flatten(cell.config).items()
    if value != base[name]
  ]
  folder = Path.cwd()
  path = Path(study.base.partition(":")[0])
  if path.is_relative_to(folder):
    path = path.relative_to(folder)
  _, colon, argument = study.base.partition(":")
  return " ".join(
    [
      "python -m ecos_jax.train",
      f"--config={path}{colon}{argument}",
      f"--workdir={workdir}",
      *flags,
    ]
  )


def _short_names(names: Any) -> dict[str, str]:
  """Returns the last part of each name, or all of it where two end alike."""
  full = dict.fromkeys(names)
  last = [name.rpartition(".")[2] for name in full]
  return {
    name: end if last.count(end) == 1 else name
    for name, end in zip(full, last, strict=True)
  }

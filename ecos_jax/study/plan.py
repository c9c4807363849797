"""What a study consists of: its trials, and how tables and plots show them.

A study is a configuration and the fields of it that vary. A trial is one run: a
name, the values of the varied fields, and its own configuration, with which
`ecos_jax.train` alone gives the same result.
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
from ecos_jax.study import metrics

REPEATED = "seed"
_NAME_LIMIT = 200  # File systems allow 255 bytes.

Axes = Mapping[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Table:
  """One table: means and standard deviations over the seeds.

  Attributes:
    title: Its heading.
    rows: Fields whose values make the rows.
    metrics: Names in `metrics.METRICS`.
    columns: A field whose values make the columns, each with all metrics.
    mean_over: Fields over whose values the mean is taken, for each seed apart;
      a seed that lacks one of them is left out.
  """

  title: str
  rows: tuple[str, ...]
  metrics: tuple[str, ...]
  columns: str | None = None
  mean_over: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plot:
  """One chart.

  Attributes:
    name: Name of its file.
    x: A field, or the name of a metric.
    y: The name of a metric.
    lines: A field whose values make the lines.
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
class Quoted:
  """What the paper reports on the same question.

  Attributes:
    text: What it is, where in the paper, and how its setting differs.
    rows: A table; the first row is its head.
  """

  text: str
  rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run.

  Attributes:
    name: Name of its folder.
    values: The varied fields and their values.
    config: What is run.
  """

  name: str
  values: dict[str, Any]
  config: config_lib.Config

  @property
  def pool(self) -> str:
    """A key that trials share exactly when they read the same data."""
    fields = config_lib.flatten(self.config)
    same = {k: v for k, v in fields.items() if k.startswith("data.")}
    return json.dumps([same, self.config.seed])


@dataclasses.dataclass
class Study(config_lib.Config):
  """A configuration, and which of its fields vary; see `of`.

  Attributes:
    base: FILE[:ARGUMENT] that the configuration comes from.
    name: Marks its place in a document.
    title: Heading of the results.
    about: Markdown below it: what was chosen, and why.
    grids: Each grid gives a trial for every combination of its fields' values;
      the study has the trials of all grids.
    follow: Fields that take the value of another field in every trial.
    tables: The first is shown with the results, the others are CSV files.
    plots: What is drawn.
    labels: What to show instead of a value, by field.
    paper: The paper's numbers, for comparison.
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
  paper: Quoted | None = None

  def validate(self) -> None:
    """Checks the study and the configuration of every trial.

    Raises:
      ConfigError: All errors at once.
    """
    found: list[str] = []
    try:
      trials = self.trials()
    except errors.ConfigError as error:
      raise errors.ConfigError(f"--config: {error}") from None
    for trial in trials:
      if trial.config.client.remote:
        found.append("`client.remote`: a study simulates its clients")
      try:
        checks.validate(trial.config)
      except errors.ConfigError as error:
        found.append(f"{trial.name}: {error}")
    before = config_lib.flatten(read(self.base))
    always = set.intersection(*map(set, self.grids)) | set(self.follow)
    for name, value in config_lib.flatten(self.base_config()).items():
      if name in always and value != before[name]:
        found.append(f"`{name}`={value}: the study sets it in all trials")
    for shown in (*self.tables, *self.plots):
      found += self._layout_errors(shown)
    if found:
      raise errors.ConfigError("; ".join(dict.fromkeys(found)))

  def _layout_errors(self, shown: Table | Plot) -> list[str]:
    """Returns what is wrong with the fields and metrics of a table or plot."""
    varied = {name for grid in self.grids for name in grid}
    if isinstance(shown, Table):
      what = f"table '{shown.title}'"
      keys = {*shown.rows, *filter(None, [shown.columns])}
      wanted = set(shown.metrics)
    else:
      what = f"plot '{shown.name}'"
      keys = {shown.lines, *filter(None, [shown.panels])}
      wanted = {shown.y}
      (wanted if shown.x in metrics.METRICS else keys).add(shown.x)
    valid = ", ".join(metrics.METRICS)
    found = [
      f"{what}: there is no metric {name}; valid: {valid}"
      for name in sorted(wanted - metrics.METRICS.keys())
    ]
    found += [
      f"{what}: no grid varies {name}"
      for name in sorted((keys | set(shown.mean_over)) - varied)
    ]
    # A plot whose x is a metric has a point for each value of one more field.
    if isinstance(shown, Table) or shown.x not in metrics.METRICS:
      found += [
        f"{what}: {name} varies and is neither shown nor averaged"
        for name in sorted(varied - keys - set(shown.mean_over) - {REPEATED})
      ]
    return found

  def trials(self) -> list[Trial]:
    """Returns all trials; those with the same data are neighbours.

    Raises:
      ConfigError: A grid names no field, or a value that a field cannot have,
        or two trials are the same.
    """
    found, trials = [], []
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
        name = name.replace("/", "-")[:_NAME_LIMIT]
        trials.append(Trial(name, chosen, config))
    if not trials:
      found.append("the study has no trials: give it grids with values")
    names = [trial.name for trial in trials]
    found += [f"two trials are {n}" for n in set(names) if names.count(n) > 1]
    if found:
      raise errors.ConfigError("; ".join(dict.fromkeys(found)))
    pools = dict.fromkeys(trial.pool for trial in trials)
    rank = {pool: i for i, pool in enumerate(pools)}
    return sorted(trials, key=lambda trial: rank[trial.pool])

  def order(self, name: str) -> list[Any]:
    """Returns the values of a field in the order of the grids."""
    values = (v for grid in self.grids for v in grid.get(name, ()))
    return list(dict.fromkeys(values))

  def label(self, name: str, value: Any) -> str:
    """Returns what is shown for a value of a field."""
    if value is None:
      return ""
    own = self.labels.get(name, {}).get(value)
    if own is not None:
      return own
    return f"{value:,}" if isinstance(value, int) else str(value)

  def wanted(self) -> set[str]:
    """Returns the names of all metrics that are shown, and fields of plots."""
    names = {name for table in self.tables for name in table.metrics}
    return names | {name for plot in self.plots for name in (plot.x, plot.y)}

  def base_config(self) -> config_lib.Config:
    """Returns the configuration that the trials differ from."""
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


def read(base: str) -> Any:
  """Returns what get_config() of FILE[:ARGUMENT] returns."""
  path, _, argument = base.partition(":")
  return runpy.run_path(path)["get_config"](argument)


def command(study: Study, trial: Trial, workdir: Path) -> str:
  """Returns the command that runs a trial alone.

  Args:
    study: The study.
    trial: One of its trials.
    workdir: For the run.
  """
  base = config_lib.flatten(read(study.base))
  flags = [
    f"--config.{name}={shlex.quote(str(value))}"
    for name, value in config_lib.flatten(trial.config).items()
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

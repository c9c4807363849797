"""A study: its trials, and the tables and plots that show them.

A study is a configuration and the fields of it that vary. A trial is one run:
`ecos_jax.train` gives the same result with the trial's configuration. The noise
of a trial comes from its seed, so that a study can be repeated.
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
_NOISE_SEED = "privacy.insecure_noise_seed"
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
    mean_over: Fields over which each seed's mean is taken; a seed that lacks
      one of their values is left out.
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
  """The paper's figures on the same question.

  Attributes:
    text: The figures' meaning, and how the paper's setting differs.
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
    name: Names the study's section in a document.
    title: Heading of the results.
    about: Markdown below the heading: what was chosen, and why.
    grids: Each grid gives a trial for every combination of its fields' values;
      the study has the trials of all grids.
    tables: The first is shown with the results, the others are CSV files.
    plots: What is drawn.
    labels: For each field, texts to show instead of its values.
    paper: The paper's numbers, for comparison.
  """

  base: str = ""
  name: str = ""
  title: str = ""
  about: str = ""
  grids: tuple[Axes, ...] = ()
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
    try:
      trials = self.trials()
    except errors.ConfigError as error:
      raise errors.ConfigError(f"--config: {error}") from None
    found = []
    if any(trial.config.client.remote for trial in trials):
      found.append("`client.remote`: a study simulates its clients")
    for trial in trials:
      try:
        checks.validate(trial.config)
      except errors.ConfigError as error:
        found.append(f"{trial.name}: {error}")
    before = config_lib.flatten(read(self.base))
    always = set.intersection(*map(set, self.grids)) | {_NOISE_SEED}
    for name, value in config_lib.flatten(self._base_config()).items():
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
      what, wanted = f"table '{shown.title}'", {*shown.metrics}
      keys = {*shown.rows, shown.columns}
    else:
      what, wanted = f"plot '{shown.name}'", {shown.y}
      keys = {shown.lines, shown.panels}
      (wanted if shown.x in metrics.METRICS else keys).add(shown.x)
    shows = {name for name in (*keys, *shown.mean_over) if name}
    valid = ", ".join(metrics.METRICS)
    found = [
      f"{what}: there is no metric {name}; valid: {valid}"
      for name in sorted(wanted - metrics.METRICS.keys())
    ]
    found += [f"{what}: no grid varies {n}" for n in sorted(shows - varied)]
    # A plot whose x is a metric has a point for each value of one more field.
    if isinstance(shown, Table) or shown.x not in metrics.METRICS:
      found += [
        f"{what}: {name} varies and is neither shown nor averaged"
        for name in sorted(varied - shows - {REPEATED})
      ]
    return found

  def trials(self) -> list[Trial]:
    """Returns all trials; those with the same data are neighbours.

    Raises:
      ConfigError: A grid names no field, or a value that a field cannot have,
        or two trials are the same.
    """
    found, trials = [], []
    fields = dict.fromkeys(name for grid in self.grids for name in grid)
    ends = [name.rpartition(".")[2] for name in fields]
    # The last part of a field's name, or all of it where two end alike.
    short = {
      name: end if ends.count(end) == 1 else name
      for name, end in zip(fields, ends, strict=True)
    }
    for grid in self.grids:
      for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        config = self._base_config()
        found += reading.assign(config, chosen)
        config.privacy.insecure_noise_seed = config.seed
        name = ",".join(f"{short[k]}={v}" for k, v in chosen.items())
        name = name.replace("/", "-")[:_NAME_LIMIT]
        trials.append(Trial(name, chosen, config))
    if not trials:
      found.append("the study has no trials: give it grids with values")
    names = [trial.name for trial in trials]
    found += [f"two trials are {n}" for n in set(names) if names.count(n) > 1]
    if found:
      raise errors.ConfigError("; ".join(dict.fromkeys(found)))
    pools = list(dict.fromkeys(trial.pool for trial in trials))
    return sorted(trials, key=lambda trial: pools.index(trial.pool))

  def order(self, name: str) -> list[Any]:
    """Returns the values of a field in the order of the grids."""
    values = (v for grid in self.grids for v in grid.get(name, ()))
    return list(dict.fromkeys(values))

  def label(self, name: str, value: Any) -> str:
    """Returns what is shown for a value of a field."""
    if value is None:
      return ""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return self.labels.get(name, {}).get(value, text)

  def wanted(self) -> set[str]:
    """Returns the names of all metrics that are shown, and fields of plots."""
    names = {name for table in self.tables for name in table.metrics}
    return names | {name for plot in self.plots for name in (plot.x, plot.y)}

  def _base_config(self) -> config_lib.Config:
    """Returns a copy of the configuration that the trials differ from."""
    names = [field.name for field in dataclasses.fields(config_lib.Config)]
    return config_lib.Config(
      **{name: copy.deepcopy(getattr(self, name)) for name in names}
    )


def of(base: str, **fields: Any) -> Study:
  """Returns the study of what varies in a configuration.

  Args:
    base: FILE[:ARGUMENT] with get_config(), as `ecos_jax.train` takes it.
    **fields: The other fields of `Study`.
  """
  config = read(base)
  return Study(**vars(config), base=base, **fields)


def read(base: str) -> Any:
  """Returns what get_config() of FILE[:ARGUMENT] returns."""
  path, _, argument = base.partition(":")
  return runpy.run_path(path)["get_config"](argument)


def command(study: Study, trial: Trial) -> str:
  """Returns the command that runs a trial alone, in the folder runs/trial."""
  base = config_lib.flatten(read(study.base))
  flags = [
    f"--config.{name}={shlex.quote(str(value))}"
    for name, value in config_lib.flatten(trial.config).items()
    if value != base[name]
  ]
  file = study.base.removeprefix(f"{Path.cwd()}/")
  start = f"python -m ecos_jax.train --config={file} --workdir=runs/trial"
  return " ".join([start, *flags])

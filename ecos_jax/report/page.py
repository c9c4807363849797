"""The page about one run, or about several and how they compare.

The templates have the words, `charts.py` draws; this module computes what the
templates show. All text that comes from a run is escaped in the templates.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import math
from typing import Any, NamedTuple

import jinja2
import scipy.stats

import ecos_jax
from ecos_jax import config as config_lib
from ecos_jax.pipeline.stages import percent
from ecos_jax.report import charts
from ecos_jax.report import collect
from ecos_jax.report import pictures
from ecos_jax.report import projection

_MESSAGES = {
  **{"first_query": "down", "first_response": "up"},
  **{"query": "down", "response": "up"},
  **{"request": "down", "labels": "up"},
}
_CURVES = {
  "loss": "Loss",
  "accuracy": "Accuracy",
  "agreement": "Agreement with the teacher",
}


class Bar(NamedTuple):
  """The share of a source in the proxy `name`, and its class of style."""

  name: str
  style: str
  share: float


class Share(NamedTuple):
  """A source, with its share of the pool and of each proxy."""

  name: str
  style: str
  pool: float
  proxies: list[Bar]


class Chart(NamedTuple):
  """A chart of training; `rings` if it has the values of finished networks."""

  title: str
  svg: str
  rings: bool


@dataclasses.dataclass(frozen=True)
class View:
  """The parts of the page about a run; None for parts that it has not.

  Attributes:
    run: The run.
    label: Its short name.
    anchor: Prefix of the ids in its chapter.
    plane: The projection of its bank.
    maps: Charts of the pool and of the proxy; none without a bank.
    coverage: The chart of the client's answer.
    passing: Share of the clusters without votes that the filter lets pass.
    pictures: Images; None for a pool of features.
    sources: The sources, with their shares of this run's proxy.
    curves: Charts of its training.
  """

  run: collect.Run
  label: str
  anchor: str
  plane: projection.Projection | None
  maps: list[str]
  coverage: str | None
  passing: float | None
  pictures: pictures.Pictures | None
  sources: list[Share]
  curves: list[Chart]

  @property
  def messages(self) -> Iterator[tuple[str, str, int]]:
    """Yields stage, direction and bytes of each message that passed."""
    for stage, direction in _MESSAGES.items():
      if sent := self.run.result(stage).get("bytes"):
        yield stage, direction, sent

  @property
  def fields(self) -> Iterator[tuple[str, str, str | None]]:
    """Yields each field, its value, and the default if that differs."""
    defaults = config_lib.flatten(config_lib.Config())
    for name, value in config_lib.flatten(self.run.config).items():
      default = defaults.get(name)
      yield name, _json(value), None if value == default else _json(default)

  @property
  def versions(self) -> dict[str, str]:
    """Returns the versions of each package in any stage."""
    found: dict[str, dict[str, None]] = {}
    for manifest in self.run.stages.values():
      for package, version in manifest["versions"].items():
        found.setdefault(package, {})[version] = None
    return {package: ", ".join(versions) for package, versions in found.items()}


def render(runs: Sequence[collect.Run]) -> str:
  """Returns the page about one or several runs.

  Args:
    runs: The runs.

  Raises:
    EcosError: An artefact is damaged.
  """
  named = [
    (run, name, _style(i))
    for i, (run, name) in enumerate(
      zip(runs, collect.labels(runs), strict=True)
    )
  ]
  views = [
    _view(run, name, f"run{i}") for i, (run, name, _) in enumerate(named)
  ]
  proxies = [entry for entry in named if entry[0].chosen is not None]
  one_pool = all(run.sources == runs[0].sources for run in runs)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("ecos_jax.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  for form in (
    _percent,
    _number,
    _size,
    _short,
    _seconds,
    _odds,
    _signed,
    _style,
  ):
    environment.filters[form.__name__.removeprefix("_")] = form
  return environment.get_template("page.html").render(
    views=views,
    rival=_rival(views),
    shares=_shares(proxies) if proxies and one_pool else None,
    one_pool=one_pool,
    curves=_curves([(run, "model", name, style) for run, name, style in named]),
    differences=_differences(runs),
    version=ecos_jax.__version__,
  )


def _view(run: collect.Run, label: str, anchor: str) -> View:
  plane = projection.project(run)
  coverage = passing = None
  if run.clusters is not None:
    threshold = run.threshold
    coverage = charts.coverage(run.clusters, threshold)
    if threshold is not None:
      # Scores are integers, and a score that passes is positive.
      sigma = run.clusters.sigma
      lowest = max(math.ceil(threshold * sigma), 1)
      passing = float(scipy.stats.norm.sf((lowest - 0.5) / sigma))
  return View(
    *(run, label, anchor, plane),
    [] if plane is None else charts.maps(run, plane),
    *(coverage, passing, pictures.look(run)),
    _shares([(run, "the proxy", None)]),
    _curves([(run, "model", "model", "c0"), (run, "teacher", "teacher", "c1")]),
  )


def _rival(views: Sequence[View]) -> View | None:
  """Returns the run to compare the first one with, a random proxy if any.

  It must have the same data, training and budget.
  """

  def setting(view: View) -> tuple:
    config = view.run.config
    return config.data, config.train, config.sampling.budget

  known = [v for v in views if v.run.summary.accuracy is not None]
  if not known or known[0] is not views[0]:
    return None
  same = [v for v in known[1:] if setting(v) == setting(views[0])]
  random = [v for v in same if v.run.summary.method == "random"]
  return next(iter(random + same), None)


def _shares(
  proxies: Sequence[tuple[collect.Run, str, str | None]],
) -> list[Share]:
  """Returns the share of each source in the pool and in proxies of it.

  Args:
    proxies: Runs on one pool, with the name and the class of each proxy; a
      class of None means the classes of the sources.
  """
  first = proxies[0][0]
  styles, size = charts.styles(first), sum(first.sources.values())
  return [
    Share(
      source,
      styles[source],
      count / size,
      [
        Bar(
          name,
          style or styles[source],
          run.composition.get(source, 0) / max(run.summary.proxy_size or 0, 1),
        )
        for run, name, style in proxies
      ],
    )
    for source, count in first.sources.items()
  ]


def _style(n: int) -> str:
  """Returns the classes of the n-th run: its colour, marked when it repeats."""
  rounds, colour = divmod(n, charts.COLOURS)
  return f"c{colour} again" if rounds else f"c{colour}"


def _curves(
  networks: Sequence[tuple[collect.Run, str, str, str]],
) -> list[Chart]:
  """Returns a chart for each metric that was logged.

  Args:
    networks: The run, stage, name and class of each network.
  """
  found = []
  for metric, title in _CURVES.items():
    series = []
    for run, stage, name, style in networks:
      rows = [row for row in run.curves.get(stage, []) if metric in row]
      if rows:
        final = run.result(stage)["accuracy"] if metric == "accuracy" else None
        steps, values = zip(
          *((r["step"], r[metric]) for r in rows), strict=True
        )
        series.append(charts.Series(name, style, steps, values, final))
    if series:
      svg = charts.curves(series, title, percent=metric != "loss")
      rings = any(line.final is not None for line in series)
      found.append(Chart(title, svg, rings))
  return found


def _differences(runs: Sequence[collect.Run]) -> dict[str, list[str]]:
  """Returns the fields in which the runs differ, with each run's value."""
  configs = [config_lib.flatten(run.config) for run in runs]
  values = {name: [_json(c[name]) for c in configs] for name in configs[0]}
  return {name: own for name, own in values.items() if len(set(own)) > 1}


def _json(value: Any) -> str:
  return json.dumps(value, ensure_ascii=False)


def _percent(share: float | None) -> str:
  return _unbroken(percent(share))


def _number(count: int) -> str:
  return f"{count:,}".replace("-", "\N{MINUS SIGN}")


def _short(value: float) -> str:
  """Returns four digits, and 1e-5 rather than 1e-05."""
  return f"{value:.4g}".replace("e-0", "e-")


def _unbroken(text: str) -> str:
  return text.replace(" ", "\N{NO-BREAK SPACE}")


def _signed(value: float) -> str:
  return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _odds(epsilon: float) -> str:
  return f"{math.exp(min(epsilon, 700)):.3g}"


def _size(count: int) -> str:
  """Returns '29.2 kB'; a kilobyte has 1,000 bytes."""
  if count < 1000:
    return _unbroken(f"{count} bytes")
  power = min(int(math.log10(count)) // 3, 4)
  return _unbroken(f"{count / 1000**power:.3g} {'kMGT'[power - 1]}B")


def _seconds(seconds: float) -> str:
  if seconds < 60:
    return _unbroken(f"{seconds:.1f} s")
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  text = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
  return _unbroken(text)

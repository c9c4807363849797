"""Reads what a finished run left in its workdir."""

from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecos_jax import config as config_lib
from ecos_jax import errors
from ecos_jax import messages
from ecos_jax import text_tables
from ecos_jax import workdir
from ecos_jax.cloud import codebook as codebook_lib
from ecos_jax.cloud import directions as directions_lib
from ecos_jax.cloud import question
from ecos_jax.cloud import scores
from ecos_jax.config import reading
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import brought
from ecos_jax.pipeline import grouping
from ecos_jax.pipeline import selection
from ecos_jax.pipeline import summary as summary_lib
from ecos_jax.pipeline.stages import percent
from ecos_jax.training import metrics


class Clusters(NamedTuple):
  """The clusters, the client's answer about each, and how many were taken.

  Attributes:
    centroids: float32 [R, d].
    assignment: int32 [N], mapped from disk.
    sizes: int64 [R], number of pool samples in each cluster.
    scores: int64 or float64 [R], the noised coverage, in votes.
    votes: float64 [R], the sampler's estimate of the true votes.
    taken: int64 [R], number of proxy samples in each cluster.
    statement: The client's privacy statement; of several, the one at the head
      of the clients' answers.
    sigma: Scale of the noise in the scores.
  """

  centroids: np.ndarray
  assignment: np.ndarray
  sizes: np.ndarray
  scores: np.ndarray
  votes: np.ndarray
  taken: np.ndarray
  statement: messages.Statement
  sigma: float


class Votes(NamedTuple):
  """The client's answer about directions.

  Attributes:
    directions: The directions that it voted on.
    count: m, on how many of them a sample votes.
    means: float64 [p], the noisy mean votes of its samples.
    noise: Standard deviation of the noise in each.
  """

  directions: directions_lib.Directions
  count: int
  means: np.ndarray
  noise: float


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run.

  Attributes:
    path: Its workdir.
    summary: The content of `summary.json`.
    config: The resolved configuration.
    stages: The manifest of each stage, in order.
    sources: Number of pool samples of each source.
    chosen: int64 [B], pool indices of the proxy; None without a proxy.
    composition: Number of proxy samples of each source; empty without a proxy.
    clusters: None unless the client was asked for votes on centroids.
    votes: None unless it was asked for votes on directions.
    curves: Logged metrics of the stages `model` and `teacher`.
  """

  path: Path
  summary: summary_lib.Summary
  config: config_lib.Config
  stages: dict[str, dict[str, Any]]
  sources: dict[str, int]
  chosen: np.ndarray | None
  composition: dict[str, int]
  clusters: Clusters | None
  votes: Votes | None
  curves: dict[str, list[dict[str, float]]]

  def result(self, stage: str) -> dict[str, Any]:
    """Returns the result of a stage; empty if the run did not need it."""
    return self.stages.get(stage, {}).get("result", {})

  @property
  def sampling(self) -> config_lib.Sampling:
    """Returns the options that the sampler ran with."""
    return self.config.sampling.resolved()

  @property
  def threshold(self) -> float | None:
    """Returns the lowest score that passed, in sigma; None without a filter."""
    if self.sampling.filter is not config_lib.Filter.THRESHOLD:
      return None
    return self.sampling.threshold


def read(path: Path) -> Run:
  """Returns the finished run in a workdir.

  Raises:
    EcosError: It is not finished, or an artefact is missing or damaged.
  """
  try:
    fields = _json(path / "summary.json")
  except FileNotFoundError:
    raise errors.EcosError(
      f"--workdir={path}: no summary.json there; run python -m "
      "ecos_jax.train to its end first"
    ) from None
  try:
    summary = _summary(fields)
    stages = {
      name: workdir.read_manifest(path / name) for name in summary.seconds
    }
    return _read(path, summary, stages)
  except FileNotFoundError as error:
    stage = Path(error.filename).parent
    remedy = "" if stage == path else f"delete the folder {stage}, and "
    raise errors.EcosError(
      f"{error.filename} is missing: {remedy}run python -m ecos_jax.train again"
    ) from None
  # A file that another version of this package wrote, or that was edited.
  except (
    *(LookupError, TypeError, ValueError, AttributeError),
    errors.ConfigError,
  ) as error:
    raise errors.EcosError(
      f"`workdir`={path} holds artefacts that this version does not know "
      f"({error!r}): run python -m ecos_jax.train again"
    ) from error


def _summary(fields: dict[str, Any]) -> summary_lib.Summary:
  parts: dict[str, Any] = {
    "model": summary_lib.Network,
    "teacher": summary_lib.Network,
    "training": summary_lib.Training,
    "clients": summary_lib.Clients,
  }
  made: dict[str, Any] = {
    name: part(**fields[name])
    for name, part in parts.items()
    if fields[name] is not None
  }
  return summary_lib.Summary(**(fields | made))


def _json(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_bytes())
  except ValueError:
    raise errors.EcosError(
      f"{path} is damaged: delete it, and run python -m ecos_jax.train again"
    ) from None


def _read(
  path: Path, summary: summary_lib.Summary, stages: dict[str, dict[str, Any]]
) -> Run:
  config = reading.read(_json(path / "config.json"))
  sources = stages["pool"]["result"]["sizes"]
  chosen = clusters = votes = None
  composition: dict[str, int] = {}
  if "proxy" in stages:
    chosen = selection.read_indices(path / "proxy", _digest(stages, "proxy"))
    counts = np.bincount(source_of(sources, chosen), minlength=len(sources))
    composition = dict(zip(sources, counts.tolist(), strict=True))
  if "response" in stages and chosen is not None:
    book = codebook_lib.read(path / "codebook", _digest(stages, "codebook"))
    folder, digest = path / "response", _digest(stages, "response")
    responses = brought.read(folder, asking.RESPONSE, digest)
    if "groups" in stages:
      assert grouping.GROUPS.read is not None
      members = grouping.GROUPS.read(path / "groups", _digest(stages, "groups"))
      group = config.sampling.group
      responses = grouping.of_group(responses, members, group)
    file = path / "query" / asking.QUERY
    query = messages.Query.from_bytes(
      workdir.read_bytes(file, _digest(stages, "query"))
    )
    answer = question.combine(responses, query)
    options = config.sampling.resolved()
    clusters = _clusters(book, answer, options, chosen)
    votes = _votes(book, answer)
  return Run(
    path=path,
    summary=summary,
    config=config,
    stages=stages,
    sources=sources,
    chosen=chosen,
    composition=composition,
    clusters=clusters,
    votes=votes,
    curves={
      name: rows
      for name in ("model", "teacher")
      if name in stages and (rows := _curve(path / name / metrics.FILE))
    },
  )


def source_of(sources: dict[str, int], indices: np.ndarray) -> np.ndarray:
  """Returns the positions of the sources [n] of pool indices [n]."""
  ends = np.cumsum(list(sources.values()))
  return np.searchsorted(ends, indices, "right")


def _digest(stages: dict[str, dict[str, Any]], stage: str) -> str:
  return stages[stage]["result"]["digest"]


def _clusters(
  book: codebook_lib.Codebook,
  answer: question.Combined,
  options: config_lib.Sampling,
  chosen: np.ndarray,
) -> Clusters | None:
  if answer.scores is None:
    return None
  clusters = Clusters(
    *(book.centroids, book.assignment, book.sizes),
    scores=answer.scores,
    votes=np.zeros(len(book.sizes)),
    taken=np.bincount(book.assignment[chosen], minlength=len(book.sizes)),
    statement=answer.statements[0],
    sigma=answer.sigma,
  )
  votes = scores.votes(clusters.scores, book.sizes, clusters.sigma, options)
  return clusters._replace(votes=votes)


def _votes(
  book: codebook_lib.Codebook, answer: question.Combined
) -> Votes | None:
  if answer.sums is None or book.directions is None:
    return None
  total = answer.sums.sum(axis=0)
  # The noise of the classes adds up with their votes.
  scale = answer.scale * len(answer.sums) ** 0.5
  voters = max(float(total[-1]), scale, 1.0)
  return Votes(
    book.directions, answer.votes, total[:-1] / voters, scale / voters
  )


def _curve(path: Path) -> list[dict[str, float]]:
  try:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row | {"step": row["step"]} for row in rows]
  # A teacher that was trained elsewhere has none.
  except FileNotFoundError:
    return []
  except (ValueError, LookupError, TypeError):
    raise errors.EcosError(
      f"{path} is damaged: delete the folder {path.parent}, and run python -m "
      "ecos_jax.train again"
    ) from None


def labels(runs: Sequence[Run]) -> list[str]:
  """Returns a name for each run: its workdir, as short as is unambiguous."""
  paths = [run.path.absolute() for run in runs]
  if len(paths) == 1:
    return [paths[0].name]
  return [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]


def table(runs: Sequence[Run]) -> str:
  """Returns a table for the terminal, with a line for each run."""
  rows = [
    (
      *("run", "method", "accuracy", "proxy", "client's share", "epsilon"),
      *("bytes down", "bytes up"),
    )
  ]
  for run in runs:
    summary = run.summary
    epsilon = summary.epsilon
    rows.append(
      (
        str(run.path),
        summary.method,
        percent(summary.accuracy),
        f"{summary.proxy_size or 0:,}",
        percent(summary.proxy_client_share),
        "not private" if epsilon is None else f"{epsilon:.4g}",
        f"{summary.bytes_down:,}",
        f"{summary.bytes_up:,}",
      )
    )
  return text_tables.aligned(rows)

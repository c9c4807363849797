"""Which answers make the proxy: all, or those of one group of clients."""

from collections.abc import Sequence
import dataclasses
import io
from pathlib import Path

from absl import logging
import numpy as np

from ecos_jax import files
from ecos_jax import messages
from ecos_jax import workdir
from ecos_jax.cloud import groups as groups_lib
from ecos_jax.cloud import question
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline.stages import FIELDS
from ecos_jax.pipeline.stages import Job
from ecos_jax.pipeline.stages import Result
from ecos_jax.pipeline.stages import Stage

_MEMBERS = "members.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupsResult(Result):
  """The groups of the answers.

  Attributes:
    sizes: Answers in each group, the largest first; all in one if the noise
      does not allow to tell the groups apart.
    most: How many groups the answers tell apart at most; 1: none.
  """

  sizes: list[int]
  most: int


def _groups(job: Job, path: Path) -> GroupsResult:
  """Divides the answers, or says that their noise does not allow it."""
  wanted = job.config.sampling.groups
  responses = job.read(asking.LAST.response)
  found = groups_lib.find(
    pooling.checked_bank(job, alone=True),
    job.read(asking.LAST.codebook),
    job.read(asking.LAST.query),
    responses,
    wanted,
    job.key("groups"),
  )
  members = job.keep(GROUPS, found.members)
  np.save(path / _MEMBERS, members)
  sizes = np.bincount(members).tolist()
  if len(sizes) == wanted:
    text = f"{wanted}, of {', '.join(map(str, sizes))} answers"
  else:
    text = f"NOT told apart: all {len(responses):,} answers make the proxy"
    logging.warning("%s", _why(found, wanted))
  digest = files.content_digest(path / _MEMBERS)
  return GroupsResult(digest=digest, text=text, sizes=sizes, most=found.most)


def _why(found: groups_lib.Groups, wanted: int) -> str:
  """Returns why the answers are not divided, and what would help."""
  if len(found.members) < wanted:
    return (
      f"{len(found.members)} answers cannot make {wanted} groups: all of them "
      "make one proxy, until more clients have answered"
    )
  if len(found.differences) < wanted:
    return (
      f"answers of {len(found.differences)} numbers cannot make {wanted} "
      "groups: all of them make one proxy"
    )
  text = (
    f"the noise of the answers does not allow to tell {wanted} groups of "
    f"clients apart, so one proxy is made for all: difference {wanted - 1} "
    f"between the answers is {found.differences[wanted - 1]:.3g} times their "
    f"noise, and between alike clients it is up to {found.chance:.3g} times. "
    "Answers with less noise or from more clients may tell them apart"
  )
  if found.most > 1:
    text += f"; these allow --config.sampling.groups={found.most}"
  return text


def _read(path: Path, digest: str) -> np.ndarray:
  """Returns the group of each answer, int64 [n], the largest is 0."""
  return np.load(io.BytesIO(workdir.read_bytes(path / _MEMBERS, digest)))


GROUPS = Stage(
  "groups",
  GroupsResult,
  _groups,
  fields=(FIELDS.sampling.groups, FIELDS.seed),
  inputs=(pooling.BANK, asking.LAST.codebook, asking.LAST.response),
  read=_read,
)


def of_group(
  responses: Sequence[messages.Response], members: np.ndarray, group: int
) -> list[messages.Response]:
  """Returns the answers of a group; all if there is one group only.

  Args:
    responses: All answers.
    members: int64 [n], from the stage `GROUPS`.
    group: `sampling.group`, from 1.
  """
  kept = (members == group - 1) | (members.max() == 0)
  return [each for each, keep in zip(responses, kept, strict=True) if keep]


def answer(job: Job) -> question.Combined:
  """Returns what the clients of the run's group answered, added up."""
  responses = job.read(asking.LAST.response)
  if job.get(GROUPS) is not None:
    group = job.config.sampling.group
    responses = of_group(responses, job.read(GROUPS), group)
  return question.combine(responses, job.read(asking.LAST.query))

"""What a run came to, in words.

`summary.json` holds, of one run: `method`, `client`, `budget`, `seed`,
`remote`;
`unreadable`, files of the pool that were left out and are listed in
`pool/unreadable.txt`;
`accuracy` on the client's test images; `proxy_size`, `proxy_digest` (sha256 of
the sorted indices as little-endian int64); `proxy_client_share` and
`pool_client_share`, the share that comes from the client's domain; `epsilon`,
`delta`, `relation` of all that the client released (0 where nothing, null where
it is not private), which is `epsilon_answers` answers: a simulated client's are
those of its ledger, also of earlier calls that were redone; of a remote client
only this run's are known, and its own ledger has the total; `noise_epsilon`,
the same if noise from a seed had come from the operating system;
`paper_epsilon`, the paper's bound for the same noise on this run's scores;
`first_epsilon`, `scores_epsilon` and `labels_epsilon`, what each of this run's
answers costs alone (null where it was not asked; the first is that of the first
of two rounds of scores); `labels_asked`, of these
`labels_considered` before the budget was used up, of these `labels_answered`,
and `labels_accuracy`, the share of the client's labels that are right;
`bytes_down` and `bytes_up` between cloud and client; `seconds` a stage; `model`
and `teacher` (null without one: with 0 steps, of features, and without labels
that are to be given by hand, a run ends at the proxy), each with `name`,
`accuracy`, `parameters` and `multiply_adds` of one image; `training` of the
model, in the call that ended it: `images_per_second` and `input_wait_share`,
the share of the time that the loop waited for images. What is not known is
null.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ecos_jax import config
from ecos_jax import messages
from ecos_jax.client import label
from ecos_jax.pipeline import asking
from ecos_jax.pipeline import labelling
from ecos_jax.pipeline import selection
from ecos_jax.pipeline.job import Job
from ecos_jax.privacy import ledger
from ecos_jax.privacy import spending
from ecos_jax.training import export

# What the answers are called, and in the fields of their epsilons.
_ANSWERS = {"labels": "labels", "first scores": "first", "scores": "scores"}
_RELATIONS = {
  "add_remove": "one sample more or less",
  "replace_one": "one sample replaced",
}


def percent(share: float | None) -> str:
  """Returns '43.2 %', or 'unknown' for None."""
  return "unknown" if share is None else f"{100 * share:.1f} %"


def collect(job: Job) -> dict[str, Any]:
  """Returns what the run came to; the fields are named above."""
  results = {name: stage.result for name, stage in job.stages.items()}
  method = job.config.sampling.method
  proxy, labels = results.get("proxy", {}), results.get("labels", {})
  return {
    "method": method.value,
    "client": (
      job.config.data.client_data
      if job.config.data.sources
      else job.config.data.client
    ),
    "budget": job.config.sampling.budget,
    "seed": job.config.seed,
    "unreadable": results["pool"].get("unreadable", 0),
    "accuracy": results.get("model", {}).get("accuracy"),
    "model": _network(job.config.train.model, results.get("model")),
    "teacher": _network(job.config.distill.teacher, results.get("teacher")),
    "proxy_size": proxy.get("size"),
    "proxy_digest": proxy.get("digest"),
    "proxy_client_share": proxy.get("client_share"),
    "pool_client_share": results["pool"]["client_share"],
    "remote": job.config.client.remote,
    **dataclasses.asdict(_spent(job)),
    "labels_asked": labels.get("requests"),
    "labels_considered": labels.get("considered"),
    "labels_answered": labels.get("answered"),
    "labels_accuracy": labels.get("accuracy"),
    "bytes_down": _bytes(results, "first_query", "query", "request"),
    "bytes_up": _bytes(results, "first_response", "response", "labels"),
    "training": _speed(results.get("model")),
    "seconds": {
      name: round(stage.seconds, 3) for name, stage in job.stages.items()
    },
  }


def _bytes(results: dict[str, dict[str, Any]], *stages: str) -> int:
  return sum(results.get(stage, {}).get("bytes", 0) for stage in stages)


def _spent(job: Job) -> spending.Spending:
  """Returns what the client's answers cost: this run's alone, and all of them.

  What was answered and then deleted is spent all the same.
  """
  answers: dict[str, spending.Answer] = {}
  fixed = True
  rounds = asking.rounds(job.config)
  for name in rounds:
    if f"{name}response" in job.stages:
      response = asking.finished_response(job, name)
      answers["first" if name else "scores"] = response
      # The client may have chosen other terms for the second round after the
      # first.
      fixed &= len(rounds) == 1 or _as_proposed(
        response.statement, asking.terms(job, name)
      )
  if "labels" in job.stages:
    response = labelling.finished_labels(job)
    answers["labels"] = response
    # The number of labels is that of the budget, unless the proxy came out
    # smaller: that tells of the scores.
    fixed &= len(response.labels) == job.config.sampling.budget
  return spending.spent(
    answers,
    _ledger(job),
    fixed=fixed,
    exposed=job.config.sampling.method in config.SIMULATION_ONLY,
  )


def _as_proposed(statement: messages.Statement, terms: messages.Terms) -> bool:
  fields = dataclasses.asdict(terms)
  return all(getattr(statement, name) == fields[name] for name in fields)


def _ledger(job: Job) -> list[ledger.Entry]:
  """Returns all that the simulated client ever answered in this workdir."""
  # Where nothing was ever asked, opening a ledger would make one.
  if job.config.client.remote or not (job.work.path / "client").exists():
    return []
  with ledger.locked(job.ledger) as book:
    return book.entries


def _network(name: str, result: dict[str, Any] | None) -> dict[str, Any] | None:
  if result is None:
    return None
  fields = ("accuracy", "parameters", "multiply_adds")
  return {"name": name} | {field: result[field] for field in fields}


def _speed(result: dict[str, Any] | None) -> dict[str, Any] | None:
  # A call that found all steps done has measured nothing.
  if result is None or not result["images_per_second"]:
    return None
  return {n: result[n] for n in ("images_per_second", "input_wait_share")}


def _measured(network: dict[str, Any]) -> str:
  return (
    f"{percent(network['accuracy'])} by {network['name']}: "
    f"{network['parameters']:,} weights, {network['multiply_adds']:,} "
    "multiply-adds an image"
  )


def _privacy(summary: dict[str, Any]) -> str:
  if summary["epsilon"] is None:
    return "NOT PRIVATE: no guarantee holds for this run"
  if summary["relation"] is None:
    return "nothing was asked of the client"
  alone = {
    name: summary[f"{field}_epsilon"]
    for name, field in _ANSWERS.items()
    if summary[f"{field}_epsilon"] is not None
  }
  detail = []
  if list(alone) == ["scores"]:
    detail = [f"the paper's bound: {summary['paper_epsilon']:.4g}"]
  elif alone:
    parts = [f"{name} {epsilon:.4g}" for name, epsilon in alone.items()]
    detail = [" and ".join(parts) + (", composed" if len(parts) > 1 else "")]
  answers = summary["epsilon_answers"]
  if answers > len(alone):
    detail.append(f"all {answers} answers in client/ledger, also those redone")
  if summary["remote"]:
    detail.append("this run's answers only: the client's ledger has the total")
  return (
    f"epsilon {summary['epsilon']:.4g} at delta {summary['delta']:g}, for "
    f"{_RELATIONS[summary['relation']]} ({'; '.join(detail)})"
  )


def _answers(summary: dict[str, Any]) -> str:
  counts = (summary[f"labels_{c}"] for c in ("asked", "considered", "answered"))
  return (
    f"{label.outcome(*counts)}; {percent(summary['labels_accuracy'])} of the "
    "labels right"
  )


def text(summary: dict[str, Any], workdir: Path) -> str:
  """Returns the summary for a person, a line a topic."""
  proxy = "none: trained on the client's own data"
  if summary["proxy_size"] is not None:
    proxy = f"{summary['proxy_size']:,} samples by {summary['method']}"
    if summary["pool_client_share"] is not None:
      proxy += (
        f", {percent(summary['proxy_client_share'])} of the client's domain "
        f"(pool: {percent(summary['pool_client_share'])})"
      )
  files = ["summary.json"]
  if summary["proxy_size"] is not None:
    index = (workdir / "proxy" / selection.INDEX).exists()
    files.append(
      f"proxy/{selection.INDEX}" if index else "proxy/dataset (TFDS)"
    )
  seconds = summary["seconds"]
  rows = {}
  if summary["unreadable"]:
    rows["skipped"] = (
      f"{summary['unreadable']:,} files that cannot be read, listed in "
      f"pool/{asking.UNREADABLE}"
    )
  if summary["model"] is None:
    rows["model"] = "none: the run ends at the proxy"
  else:
    rows["accuracy"] = _measured(summary["model"])
    files += [f"model/{export.FILE}", "metrics in model/metrics.jsonl"]
  if summary["training"] is not None:
    rate, waited = summary["training"].values()
    rows["training"] = (
      f"{rate:,.0f} images/s, {percent(waited)} of the time waiting for input"
    )
  if summary["teacher"] is not None:
    rows["teacher"] = _measured(summary["teacher"])
  if summary["accuracy"] is None and summary["model"] is not None:
    rows["evaluate"] = (
      "the client can measure it, on its own machine: python -m "
      f"ecos_jax.client.evaluate --model={export.FILE} --data=DIR"
    )
  rows["proxy"] = proxy
  if summary["labels_asked"] is not None:
    rows["labels"] = _answers(summary)
  rows |= {
    "privacy": _privacy(summary),
    "bytes": f"{summary['bytes_down']:,} down to the client, "
    f"{summary['bytes_up']:,} up from it",
    "seconds": f"{sum(seconds.values()):.1f} = "
    + " + ".join(f"{name} {value:.1f}" for name, value in seconds.items()),
    "files": f"{workdir}: {', '.join(files)}",
  }
  return "\n".join(f"{name:<9} {row}" for name, row in rows.items())

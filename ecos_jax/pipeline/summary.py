"""What a run came to, in words.

`summary.json` holds, of one run: `method`, `client`, `budget`, `seed`;
`accuracy` on the client's test images; `proxy_size`, `proxy_digest` (sha256 of
the sorted indices as little-endian int64); `proxy_client_share` and
`pool_client_share`, the share that comes from the client's domain; `epsilon`,
`delta`, `relation` of what the client released (0 where nothing, null where it
is not private) and `paper_epsilon`, the paper's bound for the same noise;
`bytes_down` and `bytes_up` between cloud and client; `seconds` a stage. What is
not known is null.
"""

from pathlib import Path
from typing import Any

from ecos_jax import config
from ecos_jax.pipeline.job import Job
from ecos_jax.privacy import accounting

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
  proxy = results.get("proxy", {})
  statement = results.get("response", {}).get("statement")
  # Without an answer of the client, nothing of it is known.
  epsilon, delta, relation, paper = 0.0, 0.0, None, None
  if statement is not None:
    epsilon = statement["epsilon"] if statement["private"] else None
    delta, relation = statement["delta"], statement["relation"]
    paper = accounting.paper_epsilon(
      statement["sigma"], statement["gamma"], delta
    )
  elif method in (config.Method.MAK, config.Method.LOCAL):
    epsilon = delta = None
  return {
    "method": method.value,
    "client": job.config.data.client,
    "budget": job.config.sampling.budget,
    "seed": job.config.seed,
    "accuracy": results["model"]["accuracy"],
    "proxy_size": proxy.get("size"),
    "proxy_digest": proxy.get("digest"),
    "proxy_client_share": proxy.get("client_share"),
    "pool_client_share": results["pool"]["client_share"],
    "epsilon": epsilon,
    "paper_epsilon": paper,
    "delta": delta,
    "relation": relation,
    "bytes_down": results.get("query", {}).get("bytes", 0),
    "bytes_up": results.get("response", {}).get("bytes", 0),
    "seconds": {
      name: round(stage.seconds, 3) for name, stage in job.stages.items()
    },
  }


def _privacy(summary: dict[str, Any]) -> str:
  if summary["epsilon"] is None:
    return "NOT PRIVATE: no guarantee holds for this run"
  if summary["relation"] is None:
    return "nothing was asked of the client"
  return (
    f"epsilon {summary['epsilon']:.4g} at delta {summary['delta']:g}, for "
    f"{_RELATIONS[summary['relation']]} (the paper's bound: "
    f"{summary['paper_epsilon']:.4g})"
  )


def text(summary: dict[str, Any], workdir: Path) -> str:
  """Returns the summary for a person, a line a topic."""
  accuracy = percent(summary["accuracy"])
  if summary["accuracy"] is None:
    accuracy += ": the test images are the client's"
  proxy = "none: trained on the client's own data"
  if summary["proxy_size"] is not None:
    proxy = (
      f"{summary['proxy_size']:,} images by {summary['method']}, "
      f"{percent(summary['proxy_client_share'])} of the client's domain "
      f"(pool: {percent(summary['pool_client_share'])})"
    )
  seconds = summary["seconds"]
  rows = {
    "accuracy": accuracy,
    "proxy": proxy,
    "privacy": _privacy(summary),
    "bytes": f"{summary['bytes_down']:,} down to the client, "
    f"{summary['bytes_up']:,} up from it",
    "seconds": f"{sum(seconds.values()):.1f} = "
    + " + ".join(f"{name} {value:.1f}" for name, value in seconds.items()),
    "files": f"{workdir}: summary.json, model/, metrics in model/metrics.jsonl"
    + (", proxy/dataset (TFDS)" if summary["proxy_size"] else ""),
  }
  return "\n".join(f"{name:<9} {row}" for name, row in rows.items())

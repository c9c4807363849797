"""The summary of a run as a text for people."""

from pathlib import Path

from ecos_jax.client import private_knn
from ecos_jax.data import listing
from ecos_jax.models import delivery
from ecos_jax.pipeline import client
from ecos_jax.pipeline import pooling
from ecos_jax.pipeline import selection
from ecos_jax.pipeline import summary as summary_lib
from ecos_jax.pipeline.stages import percent
from ecos_jax.training import export

_MANY_CLASSES = 12
_RELATIONS = {
  "add_remove": "one {} more or less",
  "replace_one": "one {} replaced",
}


def _measured(network: summary_lib.Network) -> str:
  accuracy = "not measured, for want of test images;"
  if network.accuracy is not None:
    accuracy = f"{percent(network.accuracy)} by"
  return (
    f"{accuracy} {network.name}: {network.parameters:,} "
    f"weights, {network.multiply_adds:,} multiply-adds an image"
  )


def _privacy(summary: summary_lib.Summary) -> str:
  if summary.epsilon is None:
    return "NOT PRIVATE: no guarantee holds for this run"
  if summary.relation is None:
    return "nothing was asked of the client"
  alone = {
    "labels": summary.labels_epsilon,
    "first scores": summary.first_epsilon,
    "scores": summary.scores_epsilon,
  }
  parts = [
    f"{n} {value:.4g}" for n, value in alone.items() if value is not None
  ]
  detail = [" and ".join(parts) + (", composed" if len(parts) > 1 else "")]
  if len(parts) == 1 and summary.scores_epsilon is not None:
    detail = [f"the paper's bound: {summary.paper_epsilon:.4g}"]
  if summary.epsilon_answers > len(parts):
    detail.append(
      f"all {summary.epsilon_answers} answers in client/ledger, also those "
      "redone"
    )
  if summary.remote:
    detail.append("this run's answers only: the client's ledger has the total")
  protected = _RELATIONS[summary.relation].format(summary.unit)
  return (
    f"epsilon {summary.epsilon:.4g} at delta {summary.delta:g}, for "
    f"{protected} ({'; '.join(filter(None, detail))})"
  )


def _answered(clients: summary_lib.Clients) -> str:
  text = f"{clients.answered:,} answered"
  if clients.answered > 1 and clients.most_epsilon is not None:
    low, high = f"{clients.least_epsilon:.4g}", f"{clients.most_epsilon:.4g}"
    text += f", each at epsilon {high if low == high else f'{low} to {high}'}"
    if (together := clients.together_epsilon) is not None:
      text += f" ({together:.4g} for a person who is with all of them)"
  if len(clients.groups) > 1:
    sizes = ", ".join(f"{size:,}" for size in clients.groups)
    text += f"; the proxy is of group {clients.group} (groups of {sizes})"
  elif clients.groups:
    text += "; groups NOT told apart: one proxy for all"
  return text


def _proxy(summary: summary_lib.Summary) -> str:
  if summary.proxy_size is None:
    return "none: trained on the client's own data"
  text = f"{summary.proxy_size:,} samples by {summary.method}"
  if summary.pool_client_share is not None:
    text += (
      f", {percent(summary.proxy_client_share)} of the client's domain "
      f"(pool: {percent(summary.pool_client_share)})"
    )
  return text


def _names(sizes: dict[str, int]) -> list[str]:
  """Returns the names of the classes; none if they are numbers."""
  numbers = map(str, range(len(sizes)))
  return [] if list(sizes) == list(numbers) else list(sizes)


def _classes(sizes: dict[str, int]) -> str:
  """Returns the samples of each class in the pool, if they are few classes."""
  if len(sizes) > _MANY_CLASSES:
    least, most = min(sizes.values()), max(sizes.values())
    return f"{len(sizes):,}, of {least:,} to {most:,} samples in the pool"
  each = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
  return f"{each} of the pool's samples"


def text(summary: summary_lib.Summary, workdir: Path) -> str:
  """Returns the summary for a person, a line a topic."""
  files = ["summary.json"]
  if summary.proxy_size is not None:
    index = (workdir / "proxy" / selection.INDEX).exists()
    files.append(
      f"proxy/{selection.INDEX}" if index else "proxy/dataset (TFDS)"
    )
    files.append(f"proxy/{selection.LIST}")
  rows = {}
  if summary.classes:
    rows["classes"] = _classes(summary.classes)
  skipped = []
  if summary.unreadable:
    skipped.append(
      f"{summary.unreadable:,} files that cannot be read, listed in "
      f"pool/{pooling.UNREADABLE}"
    )
  if summary.others:
    skipped.append(
      f"no images by their names: {listing.suffixes(summary.others)}"
    )
  if skipped:
    rows["skipped"] = "; ".join(skipped)
  if summary.model is None:
    rows["model"] = "none: the run ends at the proxy"
  else:
    rows["accuracy"] = _measured(summary.model)
    files += [f"model/{export.FILE}", "metrics in model/metrics.jsonl"]
  if summary.training is not None:
    rows["training"] = (
      f"{summary.training.images_per_second:,.0f} images/s, "
      f"{percent(summary.training.input_wait_share)} of the time waiting for "
      "input"
    )
  if summary.teacher is not None:
    rows["teacher"] = _measured(summary.teacher)
  if summary.accuracy is None and summary.model is not None:
    rows["evaluate"] = (
      "the client can measure it, on its own machine: python -m "
      f"ecos_jax.client.evaluate --model={delivery.FILE} --data=DIR"
      + client.classes_flag(_names(summary.classes))
    )
  rows["proxy"] = _proxy(summary)
  if summary.clients is not None and summary.clients.signal is not None:
    signal = percent(summary.clients.signal)
    rows["answer"] = f"{signal} signal, the rest noise; {summary.clients.gain}"
  if (asked := summary.labels_asked) is not None:
    outcome = private_knn.outcome(
      asked, summary.labels_considered or 0, summary.labels_answered or 0
    )
    right = percent(summary.labels_accuracy)
    rows["labels"] = f"{outcome}; {right} of the labels right"
  seconds = summary.seconds
  if (clients := summary.clients) is not None:
    rows["clients"] = _answered(clients)
  rows |= {
    "privacy": _privacy(summary),
    "bytes": f"{summary.bytes_down:,} down to the client, "
    f"{summary.bytes_up:,} up from it",
    "seconds": f"{sum(seconds.values()):.1f} = "
    + " + ".join(f"{name} {value:.1f}" for name, value in seconds.items()),
    "files": f"{workdir}: {', '.join(files)}",
  }
  return "\n".join(f"{name:<9} {row}" for name, row in rows.items())

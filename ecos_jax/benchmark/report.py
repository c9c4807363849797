"""Rows of results: what is computed of the rounds, the table, the JSON file."""

from collections.abc import Mapping
import statistics
from typing import Any

from ecos_jax.benchmark import cells
from ecos_jax.benchmark import peers

# Rates a little over the peak are noise of the two measurements.
_TOLERATED = 1.05
_COLUMNS = (
  "stage",
  "shape",
  "implementation",
  "seconds",
  "spread",
  "rate/s",
  "GFLOP/s",
  "of gemm",
  "MiB",
  "",
)


def row(
  cell: cells.Cell,
  implementation: str,
  results: list[Mapping[str, Any]],
  *,
  devices: int,
) -> dict[str, Any]:
  """Returns the row of an implementation from its rounds so far.

  Args:
    cell: What was run.
    implementation: Its name.
    results: Of at least one call; `seconds`, and more by name.
    devices: JAX devices that it ran on; 0 of a peer.
  """
  name, _, target = implementation.partition(":")
  seconds = [result["seconds"] for result in results]
  median = statistics.median(seconds)
  # The seconds of `converge` are of many passes.
  flops = None if cell.stage == "converge" else cell.flops
  # The difference of two fits can be lost in noise.
  per_second = 1 / median if median > 0 else None
  size = results[-1].get("bytes", cell.bytes)
  found = {
    "stage": cell.stage,
    "shape": cell.name,
    "implementation": name,
    "seconds": median,
    "spread": [min(seconds), max(seconds)],
    "rate": per_second and cell.counted * per_second,
    "gemm_share": None,
    "rounds": seconds,
    "devices": devices,
    "gflops": flops and per_second and flops * 1e-9 * per_second,
    "bytes_per_second": size and per_second and size * per_second,
    "peak_bytes": max(result["peak_bytes"] for result in results),
  }
  if cell.stage == "converge":
    mini = target or name == peers.MINIBATCH
    found["target_of"] = "minibatch" if mini else "lloyd"
  known = {**results[-1]}
  if "waiting_share" in known:
    known["waiting_share"] = statistics.median(
      result["waiting_share"] for result in results
    )
  return found | {k: v for k, v in known.items() if k not in found}


def complete(
  rows: list[dict[str, Any]], peak_gflops: float, chip_flops: float | None
) -> None:
  """Adds to the rows of one cell what follows from comparing them.

  `gemm_share` against the row of `gemm`, `memory_share` against `memory`,
  `bare_ratio` of the seconds to those of `bare`, round by round: the median and
  its range; `suspect` where a rate exceeds the peak, and on known chips `mfu`.

  Args:
    rows: Of one cell.
    peak_gflops: The machine's own rate of a square float32 product.
    chip_flops: The data sheet's bfloat16 FLOP/s of all devices, if known.
  """
  named = {found["implementation"]: found for found in rows}
  gemm, memory = named.get("gemm"), named.get("memory")
  bare = named.get("bare")
  if gemm and gemm["stage"] in ("assign", "fit", "stream"):
    work = gemm["gflops"] * gemm["seconds"]
    peak_gflops = max(peak_gflops, work / gemm["spread"][0])
  for found in rows:
    gflops = found["gflops"]
    found["suspect"] = found["seconds"] <= 0 or (
      gflops is not None and gflops > _TOLERATED * peak_gflops
    )
    found["mfu"] = gflops and chip_flops and 1e9 * gflops / chip_flops
    if gemm and gflops:
      found["gemm_share"] = gflops / gemm["gflops"]
    if memory:
      found["memory_share"] = memory["seconds"] / found["seconds"]
    if bare and found is not bare:
      # Rounds may differ in number while a run goes on.
      pairs = zip(found["rounds"], bare["rounds"], strict=False)
      ratios = [ours / theirs for ours, theirs in pairs]
      found["bare_ratio"] = statistics.median(ratios)
      found["bare_ratio_spread"] = [min(ratios), max(ratios)]


def _number(value: float | None) -> str:
  if value is None:
    return ""
  if value >= 1000:
    return f"{value:,.0f}"
  return f"{value:.3g}"


def _remark(found: Mapping[str, Any]) -> str:
  remarks = []
  if found["suspect"]:
    remarks.append("SUSPECT: over the peak; not all products, or mismeasured")
  if "target_of" in found:
    reached = f"inertia {found['inertia']:.6g}"
    goal = f"{found['target_of']}'s {found['target']:.6g}"
    remarks.append(
      f"{reached}, {'reached' if found['reached'] else 'MISSED'} {goal}"
    )
  if found.get("correct", 1) < 0.999:
    remarks.append(f"only {found['correct']:.1%} of the labels are right")
  if "waiting_share" in found:
    remarks.append(f"{found['waiting_share']:.1%} waiting for data")
  if found.get("memory_share") and found["implementation"] == "ecos_jax":
    remarks.append(f"{found['memory_share']:.2f} of the rate in memory")
  if "bare_ratio" in found:
    low, high = found["bare_ratio_spread"]
    remarks.append(
      f"{found['bare_ratio']:.3f} of the time by hand ({low:.3f}..{high:.3f})"
    )
  return "; ".join(remarks)


def cells_of(found: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the texts of a row's columns."""
  low, high = found["spread"]
  return (
    found["stage"],
    found["shape"],
    found["implementation"],
    f"{found['seconds']:.4g}",
    f"{low:.4g}..{high:.4g}",
    _number(found["rate"]),
    _number(found["gflops"]),
    "" if found["gemm_share"] is None else f"{found['gemm_share']:.2f}",
    _number(found["peak_bytes"] / 2**20),
    _remark(found),
  )


def table(rows: list[dict[str, Any]]) -> str:
  """Returns the rows as text in columns, under a head."""
  lines = [_COLUMNS, *map(cells_of, rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      text.ljust(width) if i in (0, 1, 2, 9) else text.rjust(width)
      for i, (text, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )

"""Rows of results: one for each implementation of a case, and their table."""

from collections.abc import Mapping
import statistics
from typing import Any

from ecos_jax import text_tables
from ecos_jax.benchmark import cases

# A rate a little over the peak is noise of the two measurements.
_TOLERATED = 1.05
_COLUMNS = (
  *("stage", "shape", "implementation", "seconds", "spread", "rate/s"),
  *("GFLOP/s", "of gemm", "MiB", ""),
)


def row(
  case: cases.Case,
  implementation: str,
  results: list[Mapping[str, Any]],
  *,
  devices: int,
) -> dict[str, Any]:
  """Returns the row of an implementation from its rounds so far.

  Args:
    case: What was run.
    implementation: Its name.
    results: What each call returned: `seconds`, and more; at least one.
    devices: Number of JAX devices it ran on; 0 for other libraries.
  """
  seconds = [result["seconds"] for result in results]
  median = statistics.median(seconds)
  # The difference of two fits can be lost in noise.
  per_second = 1 / median if median > 0 else None
  found = {
    "stage": case.stage,
    "shape": case.name,
    "implementation": implementation.partition(":")[0],
    "seconds": median,
    "spread": [min(seconds), max(seconds)],
    "rate": per_second and case.counted * per_second,
    "gemm_share": None,
    "rounds": seconds,
    "devices": devices,
    "gflops": case.flops and per_second and case.flops * 1e-9 * per_second,
    "peak_bytes": max(result["peak_bytes"] for result in results),
  }
  if case.stage == "converge":
    found["target_of"] = cases.target(implementation)
  known = dict(results[-1])
  if "waiting_share" in known:
    shares = [result["waiting_share"] for result in results]
    known["waiting_share"] = statistics.median(shares)
  return found | known | found


def complete(rows: list[dict[str, Any]], peak_gflops: float) -> None:
  """Adds to the rows of one case what follows from comparing them.

  * `gemm_share`, `memory_share`: rate as a share of that of `gemm`, `memory`.
  * `bare_ratio`, `bare_ratio_spread`: seconds divided by those of `bare`, round
    by round; the median, and the lowest and highest ratio.
  * `suspect`: whether the rate exceeds the peak.

  Args:
    rows: The rows of one case.
    peak_gflops: The machine's own rate of a square float32 product.
  """
  named = {found["implementation"]: found for found in rows}
  gemm, memory, bare = map(named.get, ("gemm", "memory", "bare"))
  if gemm:
    work = gemm["gflops"] * gemm["seconds"]
    peak_gflops = max(peak_gflops, work / gemm["spread"][0])
  for found in rows:
    gflops = found["gflops"]
    found["suspect"] = found["seconds"] <= 0 or (
      gflops is not None and gflops > _TOLERATED * peak_gflops
    )
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
  return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _remark(found: Mapping[str, Any]) -> str:
  remarks = []
  if found["suspect"]:
    remarks.append(
      "SUSPECT: over the peak; products were skipped, or it is mismeasured"
    )
  if "target_of" in found:
    verb = "reached" if found["reached"] else "MISSED"
    goal = f"{found['target_of']}'s {found['target']:.6g}"
    remarks.append(f"inertia {found['inertia']:.6g}, {verb} {goal}")
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


def table(rows: list[dict[str, Any]]) -> str:
  """Returns the rows as text in columns, under a head."""
  lines = [_COLUMNS]
  for found in rows:
    low, high = found["spread"]
    share = found["gemm_share"]
    lines.append(
      (
        *(found["stage"], found["shape"], found["implementation"]),
        f"{found['seconds']:.4g}",
        f"{low:.4g}..{high:.4g}",
        _number(found["rate"]),
        _number(found["gflops"]),
        "" if share is None else f"{share:.2f}",
        _number(found["peak_bytes"] / 2**20),
        _remark(found),
      )
    )
  return text_tables.aligned(lines, left=(0, 1, 2, 9))

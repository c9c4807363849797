"""python -m ecos_jax.gpu_check: see the package's docstring."""

from pathlib import Path
import sys
import time
import traceback
from typing import Any

from absl import flags
import jax

from ecos_jax import cli
from ecos_jax import errors
from ecos_jax import files
from ecos_jax import text_tables
from ecos_jax.clustering import kernels
from ecos_jax.gpu_check import checks
from ecos_jax.gpu_check import timings

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Tiny shapes, on any platform.")
_ONLY = flags.DEFINE_list("only", [], "Items to run; all without.")
_OUTPUT = cli.define_path("output", "gpu_check.json", "The JSON file.")
kernels.define_flags()

ITEMS = {
  item.__name__: item
  for item in (
    checks.random_shapes,
    checks.ties,
    checks.memory,
    timings.clustering,
    checks.kmeans_as_on_cpu,
    checks.votes_as_on_cpu,
    timings.xla,
    checks.encoders_as_on_cpu,
    timings.encoders,
    timings.streaming,
    checks.job,
    timings.training,
    timings.decompression,
  )
}


def _text(value: object) -> str:
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def _run(name: str, tiny: bool) -> dict:
  """Returns the result of an item: `passed` or `error`, `seconds`, `rows`."""
  begin = time.perf_counter()
  rows: list[dict] = []
  result: dict[str, Any] = {"item": name, "rows": rows}
  print(f"==> {name}", flush=True)
  try:
    for row in ITEMS[name](tiny):
      rows.append(row)
      print("  ".join(f"{k} {_text(v)}" for k, v in row.items()), flush=True)
    result["passed"] = True
  except Exception as error:
    if not isinstance(error, checks.CheckError):
      traceback.print_exc()
    result |= {"passed": False, "error": f"{type(error).__name__}: {error}"}
    print(f"FAILED: {result['error'][:2000]}", flush=True)
  return result | {"seconds": round(time.perf_counter() - begin, 1)}


def main(argv: list[str]) -> None:
  """Runs the items and writes what came out."""
  del argv
  unknown = set(_ONLY.value) - set(ITEMS)
  if unknown:
    raise errors.ConfigError(
      f"--only: no {', '.join(unknown)}; there are {', '.join(ITEMS)}"
    )
  device = jax.devices()[0]
  if device.platform != "gpu" and not _DRY_RUN.value:
    raise errors.ConfigError(
      f"JAX finds no GPU, only {device.device_kind}; --dry_run runs anywhere"
    )
  kernels.start()
  about = {
    "device": device.device_kind,
    "jax": jax.__version__,
    "dry_run": _DRY_RUN.value,
    "assignment": kernels.assignment(timings.MESH().abstract_mesh),
  }
  print(about, flush=True)
  results: list[dict] = []
  for name in _ONLY.value or ITEMS:
    results.append(_run(name, _DRY_RUN.value))
    files.write_json(Path(_OUTPUT.value), about | {"items": results})
  summary = [
    (r["item"], "passed" if r["passed"] else "FAILED", f"{r['seconds']} s")
    for r in results
  ]
  print(text_tables.aligned(summary))
  print(f"written to {_OUTPUT.value}")
  if not all(r["passed"] for r in results):
    sys.exit(1)


if __name__ == "__main__":
  cli.run(main)

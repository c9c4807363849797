"""python -m ecos_jax.benchmark: see the package's docstring."""

from pathlib import Path
import signal
import sys

from absl import flags
import tqdm

from ecos_jax import cli
from ecos_jax import errors
from ecos_jax.benchmark import cases
from ecos_jax.benchmark import run as run_lib
from ecos_jax.encoders import registry

_PRESET = flags.DEFINE_enum(
  "preset", "quick", tuple(cases.PRESETS), "Which shapes, and how many rounds."
)
_STAGES = flags.DEFINE_list(
  "stages", [], f"Some of {', '.join(cases.STAGES)}; all by default."
)
_SHAPES = flags.DEFINE_list(
  "shapes",
  [],
  "STAGE:SHAPE instead of the preset's, as in assign:1e6x128x1000; without "
  "--stages only these stages run.",
)
_IMPLEMENTATIONS = flags.DEFINE_list(
  "implementations", [], "Run only these; by default all that are installed."
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", None, "Rounds that count, instead of the preset's.", lower_bound=1
)
_ENCODER = flags.DEFINE_enum(
  "encoder", "hog", registry.names(), "The encoder of encode."
)
_IMAGE_SIZE = flags.DEFINE_integer(
  "image_size",
  None,
  "Height and width of the images of encode; by default the encoder's own.",
  lower_bound=1,
)
_OUTPUT = cli.define_path("output", "benchmark.json", "The JSON file.")


def main(argv: list[str]) -> None:
  """Runs the cases that the flags choose."""
  del argv
  preset = cases.PRESETS[_PRESET.value]
  chosen = cases.chosen(preset, _STAGES.value, _SHAPES.value)
  unknown = set(_IMPLEMENTATIONS.value) - {
    name for stage in cases.STAGES.values() for name in stage.implementations
  }
  if unknown:
    raise errors.ConfigError(f"--implementations: no {', '.join(unknown)}")
  output = Path(_OUTPUT.value).absolute()
  if not output.parent.is_dir():
    raise errors.ConfigError(f"--output={_OUTPUT.value}: no such folder")
  # Unlike other commands, this one has children and data to clear away.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)
  try:
    run = run_lib.Run(
      chosen,
      cases.Options(
        _ROUNDS.value or preset.rounds,
        preset.memory_budget,
        _ENCODER.value,
        _IMAGE_SIZE.value,
      ),
      only=_IMPLEMENTATIONS.value,
      output=output,
      say=tqdm.tqdm.write,
    )
    device = run.device
    print(
      f"{device['kind']}: {device['platform']}, {device['devices']} devices, "
      f"{device['cores']} cores; a square product runs at "
      f"{device['gemm_gflops']:.0f} GFLOP/s"
    )
    run.all()
  except KeyboardInterrupt:
    print(f"\ninterrupted: the rows so far are in {output}", file=sys.stderr)
    sys.exit(cli.EXIT_INTERRUPTED)
  print(f"written to {output}")


if __name__ == "__main__":
  cli.run(main)

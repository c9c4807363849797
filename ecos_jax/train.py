"""The whole job with one command: from a pool to a model trained on its proxy.

  python -m ecos_jax.train --config=configs/digits_manual.py --workdir=DIR

The same command goes on after an interruption, and does nothing once all is
done. Fields of the configuration are changed with --config.FIELD=VALUE. Several
processes share the work when each is started with --coordinator=HOST:PORT
--num_processes=N --process_id=I and the same --workdir, on a file system that
all see; --coordinator=auto where jax finds the others by itself.
"""

import os
from pathlib import Path
import signal

if __name__ == "__main__":
  # The imports below take seconds, in which there is nothing to save. Later
  # distributed.start has its own way to end with this code.
  def _leave(signum: int, frame: object) -> None:
    os.write(2, b"stopped on SIGTERM: the same command goes on from here\n")
    os._exit(75)

  signal.signal(signal.SIGTERM, _leave)

from ml_collections import config_flags

from ecos_jax import cli
from ecos_jax import compilation_cache
from ecos_jax import config as config_lib
from ecos_jax import distributed
from ecos_jax import errors
from ecos_jax import pipeline
from ecos_jax.clustering import kernels

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "File with get_config(), and its argument: FILE[:ARGUMENT]."
)
_WORKDIR = cli.define_path(
  "workdir", None, "Folder of this run: every artefact goes there."
)
distributed.define_flags()
kernels.define_flags()


def main(argv: list[str]) -> None:
  """Runs what is missing of the job that --config and --workdir name."""
  del argv
  config = cli.config_of(_CONFIG, config_lib.Config)
  if not _WORKDIR.value:
    raise errors.ConfigError("--workdir is missing: name a folder for this run")
  compilation_cache.start()
  distributed.start()
  kernels.start()
  pipeline.run(config, Path(_WORKDIR.value))
  distributed.finish()


if __name__ == "__main__":
  cli.run(main)

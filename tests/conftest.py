"""What all tests share: compiled programs are kept between tests and runs."""

import os
from pathlib import Path

# A cache for each worker, since JAX does not write its entries atomically.
# Tests that start processes hand it on.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
_CACHE = Path(__file__).parents[1] / ".cache" / f"xla-{_WORKER}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

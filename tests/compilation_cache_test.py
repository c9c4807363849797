import os
from pathlib import Path
import subprocess
import sys

_COMPILES = """
import jax
from ecos_jax import compilation_cache
compilation_cache.start()
jax.monitoring.register_event_listener(
  lambda name, **_: print(name.rpartition("/")[2])
)
for factor in range(3):
  value = jax.jit(lambda x: x * factor + 3)(jax.numpy.float32(2))
print(value)
"""
_MISS, _HIT = "cache_misses", "cache_hits"


def _compile(**environment):
  """Returns what JAX says of its cache; warnings are errors."""
  base = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
  said = subprocess.run(
    [sys.executable, "-W", "error", "-c", _COMPILES],
    cwd=Path(__file__).parents[1],
    env=base
    | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert not said.stderr
  *events, value = said.stdout.split()
  assert value == "7.0"
  return {_MISS, _HIT} & set(events)


def _entries(folder):
  return sorted(folder.glob("*-cache"))


def test_what_is_damaged_is_compiled_again_in_silence(tmp_path):
  place = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
  assert _compile(**place) == {_MISS}
  files = _entries(tmp_path)
  assert files == sorted(set(tmp_path.iterdir()) - {tmp_path / "checked"})
  assert _compile(**place) == {_HIT}
  for number, file in enumerate(files):
    data = file.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    file.write_bytes((flipped, data[:middle], b"")[number % 3])
  assert len(files) >= 3
  assert _compile(**place) == {_MISS}
  assert _compile(**place) == {_HIT}


def test_where_it_is(tmp_path):
  home = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
  assert _compile(**home) == {_MISS}
  assert _entries(tmp_path / "xdg" / "ecos_jax" / "jax")
  theirs = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "theirs")}
  assert _compile(**home, **theirs) == {_MISS}
  assert _entries(tmp_path / "theirs")
  assert not _compile(JAX_ENABLE_COMPILATION_CACHE="0", **theirs)


def test_a_place_that_cannot_be_had_is_done_without(tmp_path):
  (tmp_path / "file").touch()
  place = str(tmp_path / "file" / "cache")
  assert not _compile(JAX_COMPILATION_CACHE_DIR=place)
